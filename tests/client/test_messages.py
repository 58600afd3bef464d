"""Arguments as requests, answers as values."""

import pytest

from router.client.messages import (
    generate_request,
    resource_name,
    route_request,
    stream_request,
    to_adapter,
    to_events,
)
from router.client.values import Answer, Label
from router.conversion import read
from router.types import AdapterRef, Decision, LostVote, MixturePart, Override, Turn, VoteError
from router.v1 import adapters_pb2
from router.v1 import inference_pb2 as pb
from tests.client.scripted import adapter


@pytest.mark.parametrize(
    ("given", "resource"),
    [
        ("", ""),
        ("medical", "adapters/medical"),
        ("medical@1.2.0", "adapters/medical/versions/1.2.0"),
        ("base", "adapters/base"),
        ("adapters/medical", "adapters/medical"),
        ("adapters/medical/versions/2", "adapters/medical/versions/2"),
    ],
)
def test_short_names_become_resource_names(given, resource):
    assert resource_name(given) == resource


def test_the_three_inputs():
    assert generate_request("hi", {}).input.text == "hi"
    assert generate_request("hi", {"raw": True}).input.raw_prompt == "hi"
    chat = generate_request([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")], {"system": "s"})
    assert [(m.role, m.text) for m in chat.input.chat.messages] == [
        (pb.ROLE_SYSTEM, "s"),
        (pb.ROLE_USER, "a"),
        (pb.ROLE_ASSISTANT, "b"),
        (pb.ROLE_USER, "c"),
    ]


def test_a_role_that_is_none_says_which_there_are():
    with pytest.raises(ValueError, match=r"turn 2: role 'wizard' .*: use system, user, assistant or"):
        generate_request([Turn("user", "hi"), Turn("wizard", "{}")], {})


HALF = "smile \ud83d"


@pytest.mark.parametrize(
    ("prompt", "options", "where"),
    [
        (HALF, {}, "prompt"),
        (HALF, {"raw": True}, "prompt"),
        ([Turn("user", "hi"), Turn("user", HALF)], {}, "turn 2"),
        ("hi", {"system": HALF}, "turn 1"),
        ("hi", {"stop": ["ok", HALF]}, "stop"),
        ("hi", {"stop": HALF}, "stop"),
        ("hi", {"adapter": HALF}, "adapter"),
        ("hi", {"domain": HALF}, "domain"),
        ("hi", {"mixture": {HALF: 1.0}}, "mixture"),
        ("hi", {"labels": {"k": HALF}}, "labels"),
    ],
)
def test_half_a_character_is_named(prompt, options, where):
    with pytest.raises(ValueError, match=rf"^{where}: .*lone surrogate U\+D83D .*errors=") as caught:
        generate_request(prompt, options)
    assert not isinstance(caught.value, UnicodeError)


@pytest.mark.parametrize("prompt", ["hi", [Turn("user", "hi")]])
def test_raw_goes_with_plain_text_only(prompt):
    options = {"raw": True, "system": "s" if prompt == "hi" else ""}
    with pytest.raises(TypeError, match="raw"):
        route_request(prompt, options)


def test_both_generate_requests_have_the_same_fields():
    options = {"seed": 3, "stop": ["a", "b"], "domain": "legal", "labels": {"k": "v"}}
    whole, streamed = generate_request("hi", options), stream_request("hi", options)
    assert whole.SerializeToString(deterministic=True) == streamed.SerializeToString(deterministic=True)


def test_what_the_gate_said_and_who_overruled_it():
    made = adapters_pb2.Adapter.Override(by="::1", reason="r", finding="f", weights_sha256="ab")
    made.time.seconds = 7
    seen = to_adapter(adapter("m", gate="g", gate_advice="a", routable=True, override=made))
    assert (seen.gate, seen.gate_advice, seen.routable) == ("g", "a", True)
    assert seen.override == Override("1.0.0", "::1", 7.0, "r", "f", "ab")
    assert to_adapter(adapter("m")).override is None


def test_from_which_tokens_on_an_activated_lora_acts():
    assert to_adapter(adapter("m", invocation_tokens=[1, 520])).invocation_tokens == (1, 520)
    assert to_adapter(adapter("m")).invocation_tokens == ()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"json_schema": '{"type": "string"}'}, "json_schema", '{"type": "string"}'),
        ({"json_schema": {"type": "string"}}, "json_schema", '{"type": "string"}'),
        ({"regex": "a+"}, "regex", "a+"),
        ({"grammar": "start: WORD"}, "grammar", "start: WORD"),
        ({"quote": "a text"}, "quote", "a text"),
        ({"from_prompt": "sql"}, "from_prompt", "sql"),
        ({"choices": ("yes", "no")}, "choices", pb.Sampling.Choices(values=["yes", "no"])),
        ({"choices": {"yes": 1}.keys()}, "choices", pb.Sampling.Choices(values=["yes"])),
        ({"unconstrained": True}, "unconstrained", True),
    ],
)
def test_what_an_answer_must_look_like(options, field, value):
    for request in (generate_request("hi", options), stream_request("hi", options)):
        assert request.sampling.WhichOneof("constraint") == field
        assert getattr(request.sampling, field) == value


def test_an_answer_has_one_constraint():
    with pytest.raises(TypeError, match="one constraint, not both regex and choices"):
        generate_request("hi", {"choices": ["a"], "regex": "a"})
    with pytest.raises(TypeError, match="several texts"):
        generate_request("hi", {"choices": "yes"})
    with pytest.raises(ValueError, match="regex: holds half a character"):
        generate_request("hi", {"regex": HALF})
    with pytest.raises(ValueError, match="choices: holds half a character"):
        generate_request("hi", {"choices": ["ok", HALF]})
    assert generate_request("hi", {"regex": None}).sampling.WhichOneof("constraint") is None


def test_a_mixture_is_named_like_adapters_in_the_order_said():
    said = {"legal@2.0.0": 0.3, "adapters/medical": -0.7}
    for make in (generate_request, stream_request, route_request):
        assert [(p.adapter, p.weight) for p in make("hi", {"mixture": said}).routing.mixture] == [
            ("adapters/legal/versions/2.0.0", 0.3),
            ("adapters/medical", -0.7),
        ]


def test_a_decision_tells_the_parts_of_a_mixture():
    parts = [pb.MixturePart(adapter="adapters/legal/versions/2", weight=0.5)]
    assert read(Decision, pb.Decision(mixture=parts)).mixture == (MixturePart(AdapterRef("legal", "2"), 0.5),)
    assert read(Decision, pb.Decision()).mixture == ()


def test_a_decision_tells_which_votes_were_lost():
    lost = [
        pb.LostVote(classifier="examples", reason="breaker-open"),
        pb.LostVote(classifier="new", reason="tired"),
    ]
    assert read(Decision, pb.Decision(votes_lost=lost)).votes_lost == (
        LostVote("examples", VoteError.BREAKER_OPEN),
        LostVote("new", VoteError.OTHER),
    )
    assert read(Decision, pb.Decision()).votes_lost == ()


def test_a_conversation_is_named_and_continued():
    options = {"conversation": "c", "continuity": "sticky", "fresh": True}
    routing = generate_request("and?", options).routing
    assert (routing.conversation, routing.continuity, routing.fresh) == ("c", pb.CONTINUITY_STICKY, True)
    assert generate_request("and?", {}).routing.continuity == pb.CONTINUITY_UNSPECIFIED
    with pytest.raises(ValueError, match="continuity must be one of adaptive, sticky, none"):
        generate_request("and?", {"continuity": "always"})


def test_a_decision_tells_what_became_of_a_conversation():
    kept = read(Decision, pb.Decision(continuity="kept", previous="adapters/legal"))
    assert (kept.continuity, kept.previous) == ("kept", "legal")
    newer = read(Decision, pb.Decision(continuity="forked", previous="base"))
    assert (newer.continuity, newer.previous) == ("", "base")


def test_labels_are_wanted_or_not_or_as_the_adapter_says():
    assert generate_request("hi", {"want_labels": False}).HasField("want_labels")
    assert stream_request("hi", {"want_labels": True}).want_labels
    assert not generate_request("hi", {}).HasField("want_labels")


def test_labels_come_with_the_answer_and_the_end_of_a_stream():
    labels = [pb.Label(text="a", probability=0.75), pb.Label(text="b", probability=0.25)]
    expected = (Label("a", 0.75), Label("b", 0.25))
    answer = read(Answer, pb.GenerateResponse(labels=labels, labels_calibrated=True))
    assert (answer.labels, answer.labels_calibrated) == (expected, True)
    (end,) = to_events(pb.StreamGenerateResponse(finished=pb.Finished(labels=labels)))
    assert (end.labels, end.labels_calibrated) == (expected, False)
