"""OpenAI's requests as our messages: what is kept, what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.extensions.openai import answers, fields, requests
from router.names import resource_of
from router.v1 import inference_pb2 as pb
from tests.server.http_helpers import asking


def chat(text: str = "one two three", **more: Any) -> pb.GenerateRequest:
    asked = fields.parsed(requests.ChatCompletion, json.dumps(asking(text, **more)).encode())
    return requests.generate_message(asked, "")


def refused(kind: Any, body: Any) -> set[str]:
    with pytest.raises(InvalidRequest) as caught:
        requests.generate_message(fields.parsed(kind, json.dumps(body).encode()), "")
    return {violation.field for violation in caught.value.violations}


def test_leading_instructions_are_one_system_text_and_parts_are_joined() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}],
        },
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c", "name": "me"},
    ]
    turns = chat(messages=messages).input.chat.messages
    assert [(turn.role, turn.text) for turn in turns] == [
        (pb.ROLE_SYSTEM, "Be brief.\n\nBe kind."),
        (pb.ROLE_USER, "a"),
        (pb.ROLE_ASSISTANT, "b"),
        (pb.ROLE_USER, "c"),
    ]


def test_sampling_is_said_only_where_it_was_said() -> None:
    assert not chat().sampling.ListFields()
    said = chat(
        max_completion_tokens=7, max_tokens=9, temperature=0, top_p=0.5, seed=3, stop="x", presence_penalty=1
    ).sampling
    assert (said.max_tokens, said.HasField("temperature"), said.top_p, said.seed) == (7, True, 0.5, 3)
    assert list(said.stop) == ["x"]
    assert chat(max_tokens=9, stop=["a", "b"]).sampling.max_tokens == 9
    assert list(chat(stop=["a", "b"]).sampling.stop) == ["a", "b"]


def test_response_formats_are_constraints() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert json.loads(chat(response_format=form).sampling.json_schema) == schema
    assert json.loads(chat(response_format={"type": "json_object"}).sampling.json_schema) == {
        "type": "object"
    }
    assert chat(response_format={"type": "text"}).sampling.unconstrained
    assert list(chat(choice=["a", "b"]).sampling.choices.values) == ["a", "b"]
    assert chat(regex="a+").sampling.regex == "a+"
    assert refused(requests.ChatCompletion, asking(response_format={"type": "json_schema"})) == {
        "response_format.json_schema"
    }
    assert refused(requests.ChatCompletion, asking(regex="a", choice=["a"])) == {"choice"}


@pytest.mark.parametrize(
    ("sent", "bad"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": "hi"}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(map(str, range(301)), 1)}, "logit_bias"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(sent: dict[str, Any], bad: str) -> None:
    assert any(field.startswith(bad) for field in refused(requests.ChatCompletion, asking(**sent)))


def test_what_asks_for_nothing_is_accepted() -> None:
    sent = {
        "tools": [],
        "tool_choice": "auto",
        "logit_bias": None,
        "n": 1,
        "parallel_tool_calls": True,
        "store": False,
        "service_tier": "flex",
        "seed": None,
        "reasoning_effort": "none",
        "verbosity": "low",
        "echo": False,
    }
    assert chat(**sent) == chat()
    assert chat(**dict.fromkeys((*requests.CHAT.ignored, *requests.CHAT.refused))) == chat()


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    sent = asking(temprature=1, best_of=2, routing={"domian": "x"}, **{"x" * 999: 1})
    with pytest.raises(InvalidRequest) as caught:
        fields.parsed(requests.ChatCompletion, json.dumps(sent).encode())
    assert [(v.field, v.description) for v in caught.value.violations] == [
        ("best_of", "is not supported: use n; it may be 1"),
        ("temprature", "is not a field of this API; did you mean 'temperature'?"),
        ("x" * 64, "is not a field of this API"),
        ("routing.domian", "is not a field of this API; did you mean 'domain'?"),
    ]


def test_biases_have_ids_of_tokens_as_keys() -> None:
    assert dict(chat(logit_bias={"5": 1, "7": -0.5}).sampling.logit_bias) == {5: 1.0, 7: -0.5}


def test_shapes_may_be_in_the_forms_of_vllm() -> None:
    schema = {"type": "object"}
    same = [
        {"structured_outputs": {"json": schema}},
        {"structured_outputs": {"json": json.dumps(schema), "disable_any_whitespace": True}},
        {"structured_outputs": {"json_object": True}},
        {"response_format": {"type": "text"}, "structured_outputs": {"json": schema}},
    ]
    assert {chat(**one).sampling.json_schema for one in same} == {json.dumps(schema)}
    assert chat(structured_outputs={"regex": "a+"}) == chat(regex="a+")
    assert chat(structured_outputs={"choice": ["a"]}) == chat(choice=["a"])
    assert chat(structured_outputs={"grammar": "g"}) == chat(grammar="g")
    assert (chat(quote="a").sampling.quote, chat(from_prompt="sql").sampling.from_prompt) == ("a", "sql")
    assert chat(top_k=-1).sampling == chat(top_k=0).sampling
    assert chat(ignore_eos=True, max_tokens=7).sampling.min_tokens == 7
    both = asking(regex="a", structured_outputs={"regex": "a"})
    assert refused(requests.ChatCompletion, both) == {"structured_outputs.regex"}
    assert refused(requests.ChatCompletion, asking(ignore_eos=True)) == {"ignore_eos"}


def test_plain_prompts_are_raw() -> None:
    asked = fields.parsed(requests.Completion, b'{"prompt": ["a b"], "logprobs": 2}')
    message = requests.generate_message(asked, "")
    assert (message.input.raw_prompt, message.sampling.logprobs) == ("a b", 2)
    assert any(f.startswith("prompt") for f in refused(requests.Completion, {"prompt": [1, 2]}))
    assert refused(requests.Completion, {"prompt": "a", "echo": True}) == {"echo"}


@pytest.mark.parametrize(
    ("model", "resource"),
    [
        ("m:latest", "adapters/m"),
        ("m:1.2", "adapters/m/versions/1.2"),
        ("auto:latest", ""),
        ("auto", ""),
        ("base", "base"),
        ("m", "adapters/m"),
        ("m@1.2", "adapters/m/versions/1.2"),
        ("m/1.2", "adapters/m/versions/1.2"),
        ("adapters/m", "adapters/m"),
        ("adapters/m/versions/1", "adapters/m/versions/1"),
        ("a b", "a b"),
        ("", ""),
        ("a@b@c", "a@b@c"),
    ],
)
def test_names_of_models(model: str, resource: str) -> None:
    assert resource_of(model) == resource


def test_the_unit_of_experiments_is_the_routings_then_the_users_then_the_headers() -> None:
    def unit(header: str, **more: Any) -> str:
        asked = fields.parsed(requests.ChatCompletion, json.dumps(asking(**more)).encode())
        return requests.generate_message(asked, header).routing.unit

    assert unit("h") == "h"
    assert unit("h", safety_identifier="s") == "s"
    assert unit("h", safety_identifier="s", user="u") == "u"
    assert unit("h", user="u", routing={"unit": "r"}) == "r"


def test_mixtures_and_hints() -> None:
    mixture = [{"adapter": "a", "weight": 0.5}, {"adapter": "b@2"}]
    routing = chat(routing={"mixture": mixture, "explain": True}).routing
    assert [(part.adapter, part.weight) for part in routing.mixture] == [
        ("adapters/a", 0.5),
        ("adapters/b/versions/2", 1.0),
    ]
    assert chat(routing={"domain": "medical"}).routing.domain == "medical"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({*requests.ChatCompletion.model_fields, *requests.Completion.model_fields})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | JSON, st.booleans())
def test_any_json_is_a_request_or_refused_in_words(body: Any, plain: bool) -> None:
    kind: Any = requests.Completion if plain else requests.ChatCompletion
    try:
        message = requests.generate_message(fields.parsed(kind, json.dumps(body).encode()), "")
    except InvalidRequest as error:
        refusal = error
    else:
        assert pb.GenerateRequest.FromString(message.SerializeToString()) == message
        return
    assert all(violation.field and violation.description for violation in refusal.violations)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        fields.parsed(requests.ChatCompletion, data)


def test_lost_votes_are_in_the_field_routing() -> None:
    lost = pb.LostVote(classifier="examples", reason="timeout")
    told = answers.decision_json(pb.Decision(votes_lost=[lost]))
    assert told["votes_lost"] == [{"classifier": "examples", "reason": "timeout"}]


def test_conversations_are_said_as_over_grpc() -> None:
    routing = chat(routing={"conversation": "c", "continuity": "none", "fresh": True}).routing
    assert (routing.conversation, routing.continuity, routing.fresh) == ("c", pb.CONTINUITY_NONE, True)
    assert chat().routing.continuity == pb.CONTINUITY_UNSPECIFIED
    assert refused(requests.ChatCompletion, asking(routing={"continuity": "always"}))
    told = answers.decision_json(pb.Decision(continuity="kept", previous="adapters/legal"))
    assert (told["continuity"], told["previous"]) == ("kept", "adapters/legal")


TITLE = """### Task:
Generate a concise title summarizing the chat history.
### Chat History:
<chat_history>
USER: Summarize the legal risks of aspirin
</chat_history>"""


def test_a_front_ends_own_task_goes_to_the_base() -> None:
    assert chat(TITLE).routing.adapter == "base"
    assert chat(TITLE, model="auto:latest").routing.adapter == "base"
    assert chat(TITLE, model="medical").routing.adapter == "adapters/medical"
    assert chat(TITLE, routing={"domain": "law"}).routing.adapter == ""
    assert chat(TITLE.replace("\n", " ")).routing.adapter == ""
    assert chat("### Task:\nSummarize this text: a fast mail reader").routing.adapter == ""
