"""Proto to requests: what is not said, what is out of range, and every bad field named at once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Findings, InvalidRequest
from router.names import split_adapter
from router.server.inference import (
    RequestLimits,
    decision_message,
    generate_request,
    route_request,
    sampling_of,
)
from router.types import SAMPLING_RANGES, Decision, LostVote, Reason, Request, Sampling, Turn, VoteError
from router.v1 import inference_pb2 as pb

LIMITS = RequestLimits(max_prompt_bytes=100, max_tokens=50)
TEXT = pb.Input(text="hi")


def violations(message: pb.GenerateRequest) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        generate_request(message, "id", LIMITS)
    return {v.field: v.description for v in caught.value.violations}


def chat(*messages: tuple[int, str]) -> pb.GenerateRequest:
    turns = [pb.ChatMessage(role=role, text=text) for role, text in messages]
    return pb.GenerateRequest(input=pb.Input(chat=pb.Chat(messages=turns)))


def test_every_kind_of_input() -> None:
    asked = generate_request(pb.GenerateRequest(input=TEXT), "id", LIMITS)
    assert asked == Request("id", turns=(Turn("user", "hi"),), labels={})
    raw = generate_request(pb.GenerateRequest(input=pb.Input(raw_prompt="hi")), "id", LIMITS)
    assert (raw.turns, raw.raw_prompt) == ((), "hi")
    talk = chat((pb.ROLE_SYSTEM, "s"), (pb.ROLE_USER, "u"), (pb.ROLE_ASSISTANT, "a"), (pb.ROLE_USER, "v"))
    turns = generate_request(talk, "id", LIMITS).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]


def test_every_bad_field_is_named_at_once() -> None:
    message = pb.StreamGenerateRequest(
        input=pb.Input(text=" \n"),
        sampling=pb.Sampling(temperature=3, top_p=0, max_tokens=51, stop=["", "x" * 257]),
        routing=pb.Routing(adapter="medical", domain="d" * 65, unit="u" * 257),
        labels={"k" * 65: "v", "k": "v" * 65, "reference": "r" * 4097},
    )
    assert set(violations(message)) == {
        "input.text",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.max_tokens",
        "sampling.stop[0]",
        "sampling.stop[1]",
        "routing.adapter",
        "routing.domain",
        "routing.unit",
        "labels",
        "labels[k]",
        "labels[reference]",
    }


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "input"),
        (pb.GenerateRequest(input=pb.Input(text="")), "input.text"),
        (pb.GenerateRequest(input=pb.Input(raw_prompt="")), "input.raw_prompt"),
        (pb.GenerateRequest(input=pb.Input(text="x" * 101)), "input.text"),
        (pb.GenerateRequest(input=pb.Input(text="é" * 51)), "input.text"),
        (chat(), "input.chat.messages"),
        (chat(*[(pb.ROLE_USER, "x")] * 257), "input.chat.messages"),
        (chat((pb.ROLE_USER, "x" * 60), (pb.ROLE_USER, "x" * 60)), "input.chat.messages"),
        (chat((pb.ROLE_UNSPECIFIED, "x")), "input.chat.messages[0].role"),
        (chat((99, "x")), "input.chat.messages[0].role"),
        (chat((pb.ROLE_USER, "")), "input.chat.messages[0].text"),
        (chat((pb.ROLE_SYSTEM, "x")), "input.chat.messages[0].role"),
        (chat((pb.ROLE_USER, "x"), (pb.ROLE_ASSISTANT, "x")), "input.chat.messages[1].role"),
        (
            chat((pb.ROLE_USER, "x"), (pb.ROLE_SYSTEM, "x"), (pb.ROLE_USER, "x")),
            "input.chat.messages[1].role",
        ),
        (pb.GenerateRequest(input=TEXT, labels={str(i): "" for i in range(17)}), "labels"),
        (pb.GenerateRequest(input=TEXT, labels={"": "v"}), "labels"),
    ],
)
def test_one_bad_field(message: pb.GenerateRequest, field: str) -> None:
    assert field in violations(message)


def test_caps_are_inclusive() -> None:
    message = pb.GenerateRequest(
        input=pb.Input(text="x" * 100),
        routing=pb.Routing(domain="d" * 64, task="t" * 64, unit="u" * 256),
        sampling=pb.Sampling(stop=["s" * 256] * 16, max_tokens=50),
        labels={"reference": "r" * 4096} | {f"{i:064}": "v" * 64 for i in range(15)},
    )
    assert generate_request(message, "id", LIMITS).sampling.max_tokens == 50


def test_violations_are_bounded() -> None:
    message = chat(*[(pb.ROLE_UNSPECIFIED, "")] * 256)
    with pytest.raises(InvalidRequest) as caught:
        generate_request(message, "id", LIMITS)
    assert len(caught.value.violations) == 33


def test_route_needs_an_input_too() -> None:
    with pytest.raises(InvalidRequest, match="input: one of"):
        route_request(pb.RouteRequest(), "id", LIMITS)


@given(st.text(max_size=120), st.text(max_size=70), st.text(max_size=70))
def test_any_text_makes_a_request_or_is_named(text: str, adapter: str, domain: str) -> None:
    message = pb.GenerateRequest(
        input=pb.Input(text=text), routing=pb.Routing(adapter=adapter, domain=domain)
    )
    try:
        asked = generate_request(message, "id", LIMITS)
    except InvalidRequest as error:
        named = {v.field for v in error.violations}
    else:
        named = set()
        assert asked.text == text
    bad = {
        "input.text": not text.strip() or len(text.encode()) > 100,
        "routing.adapter": bool(adapter) and split_adapter(adapter) is None,
        "routing.domain": len(domain.encode()) > 64,
    }
    assert named == {field for field, is_bad in bad.items() if is_bad}


FLOATS = [field for field, allowed in SAMPLING_RANGES.items() if allowed.kind is float]


def convert(**fields: object) -> Sampling:
    found = Findings()
    sampling = sampling_of(pb.Sampling(**fields), 100, found)
    found.check()
    return sampling


def test_unset_is_not_zero() -> None:
    assert convert() == Sampling()
    zeros = convert(temperature=0, top_k=0, min_p=0, frequency_penalty=0, min_tokens=0, seed=0, logprobs=0)
    assert (zeros.temperature, zeros.top_k, zeros.min_tokens, zeros.seed) == (0.0, 0, 0, 0)
    assert zeros != Sampling()


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("max_tokens", [1, 100], [0, -1, 101]),
        ("min_tokens", [0, 100], [-1, 101]),
        ("temperature", [0, 2], [-0.01, 2.01]),
        ("top_p", [0.01, 1], [0, 1.01, -1]),
        ("top_k", [0, 2**31 - 1], [-1]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("repetition_penalty", [0.01, 2], [0, 2.01, -1]),
        ("frequency_penalty", [-2, 2], [-2.01, 2.01]),
        ("presence_penalty", [-2, 2], [-2.01, 2.01]),
        ("seed", [0, 2**63 - 1], [-1]),
        ("logprobs", [0, 20], [-1, 21]),
    ],
)
def test_ranges(field: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(convert(**{field: value}), field) == pytest.approx(value)
    for value in bad:
        with pytest.raises(InvalidRequest, match=rf"^sampling\.{field}: must be"):
            convert(**{field: value})


@pytest.mark.parametrize("field", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match="finite"):
        convert(**{field: value})


@given(st.sampled_from(FLOATS), st.floats(width=32))
def test_a_float_is_taken_as_it_is_or_named(field: str, value: float) -> None:
    try:
        taken = getattr(convert(**{field: value}), field)
    except InvalidRequest as error:
        named = [v.field for v in error.violations]
    else:
        named = []
        assert taken == value
    allowed = value in SAMPLING_RANGES[field]
    assert named == ([] if allowed else [f"sampling.{field}"])


def test_min_above_max() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens: must not be more"):
        convert(min_tokens=6, max_tokens=5)


def test_stops() -> None:
    assert convert(stop=["a", "b"]).stop == ("a", "b")
    assert convert(stop=[]).stop is None
    with pytest.raises(InvalidRequest, match="at most 16"):
        convert(stop=["x"] * 17)


@pytest.mark.parametrize("explain", [False, True])
def test_lost_votes_are_in_the_message_also_without_explain(explain: bool) -> None:
    decision = Decision(None, Reason.ABSTAINED, votes_lost=(LostVote("probe", VoteError.NOT_READY),))
    lost = decision_message(decision, explain).votes_lost
    assert [(one.classifier, one.reason) for one in lost] == [("probe", "not-ready")]


def test_conversations_are_named_and_continued() -> None:
    routing = pb.Routing(conversation="c", continuity=pb.CONTINUITY_STICKY, fresh=True)
    hints = generate_request(pb.GenerateRequest(input=TEXT, routing=routing), "id", LIMITS).routing
    assert (hints.conversation, hints.continuity, hints.fresh) == ("c", "sticky", True)
    plain = generate_request(pb.GenerateRequest(input=TEXT), "id", LIMITS).routing
    assert (plain.conversation, plain.continuity, plain.fresh) == ("", "", False)


def test_what_a_conversation_cannot_be() -> None:
    bad = pb.Routing(conversation="c" * 257)
    bad.continuity = 99  # type: ignore[assignment]
    found = violations(pb.GenerateRequest(input=TEXT, routing=bad))
    assert set(found) == {"routing.conversation", "routing.continuity"}


@pytest.mark.parametrize(("previous", "told"), [("legal", "adapters/legal"), ("base", "base"), ("", "")])
def test_a_decision_tells_what_became_of_the_conversation(previous: str, told: str) -> None:
    decision = Decision(None, Reason.ABSTAINED, continuity="switched", previous=previous)
    message = decision_message(decision, explain=False)
    assert (message.continuity, message.previous) == ("switched", told)
