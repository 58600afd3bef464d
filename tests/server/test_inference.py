"""Proto to requests: what is not said, what is out of range, and every bad field named at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.base import Delta, Finished, Generation, batches, buffered
from router.engine.output import EventStream
from router.errors import EngineFailed, Findings, InvalidRequest
from router.names import split_adapter
from router.server.app import ServerApp
from router.server.inference import ALL, decision_message, joined
from router.server.requests import RequestLimits, generate_request, route_request, sampling_of
from router.types import (
    Decision,
    FinishReason,
    LostVote,
    Reason,
    Request,
    Sampling,
    TokenLogprob,
    Turn,
    VoteError,
)
from router.v1 import inference_pb2 as pb
from tests.server.helpers import ask, long_stream, settled, stream, until

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


def test_violations_are_bounded() -> None:
    message = chat(*[(pb.ROLE_UNSPECIFIED, "")] * 256)
    with pytest.raises(InvalidRequest) as caught:
        generate_request(message, "id", LIMITS)
    assert len(caught.value.violations) == 33


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


def test_biases_are_of_tokens_by_id() -> None:
    assert convert(logit_bias={9: -100, 3: 0.5}).logit_bias == ((3, 0.5), (9, -100.0))
    assert convert(logit_bias={}).logit_bias is None
    for value in (100.5, float("nan")):
        with pytest.raises(InvalidRequest, match=r"^sampling\.logit_bias\[3\]: must be in \[-100, 100\]"):
            convert(logit_bias={3: value})
    with pytest.raises(InvalidRequest, match="at most 300 entries, got 301"):
        convert(logit_bias=dict.fromkeys(range(301), 1))


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
    decision = Decision(None, Reason.ABSTAINED, votes_lost=(LostVote("examples", VoteError.NOT_READY),))
    lost = decision_message(decision, explain).votes_lost
    assert [(one.classifier, one.reason) for one in lost] == [("examples", "not-ready")]


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


def test_route_needs_an_input_too() -> None:
    with pytest.raises(InvalidRequest, match="input: one of"):
        route_request(pb.RouteRequest(), "id", LIMITS)


# -- InferenceService: a caller that leaves costs nothing more; a slow reader gets longer deltas.


async def test_generate_tells_who_answered(stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask("a medical question"))
    assert reply.text.endswith(" a medical question")
    assert reply.decision.adapter == "adapters/medical/versions/1.0.0"
    assert reply.text.startswith(f"[{reply.decision.digest[:8]}]")
    assert reply.decision.reason == pb.DECISION_REASON_CLASSIFIED
    assert reply.finish_reason == pb.FINISH_REASON_STOP
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (18, 4)
    assert not reply.decision.votes


async def test_stream_is_started_deltas_finished(stubs: SimpleNamespace) -> None:
    events = [event async for event in stubs.inference.StreamGenerate(stream())]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    assert "".join(event.delta.text for event in events) == "[base] one two three"
    assert sum(event.delta.tokens for event in events) == 4
    assert events[0].started.decision.reason == pb.DECISION_REASON_ABSTAINED


async def test_the_base_is_asked_for_by_its_name(stubs: SimpleNamespace) -> None:
    for name in ("base", "adapters/base"):
        request = pb.GenerateRequest(input=pb.Input(text="hello"), routing=pb.Routing(adapter=name))
        decision = (await stubs.inference.Generate(request)).decision
        assert (decision.adapter, decision.reason) == ("", pb.DECISION_REASON_EXPLICIT)


@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
async def test_leaving_mid_stream_frees_row_and_lease(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace, leave: str
) -> None:
    fakes.engine.step_seconds = 0.02
    call = stubs.inference.StreamGenerate(long_stream(text="legal words"))
    events = aiter(call)
    for _ in range(3):
        await anext(events)
    assert fakes.registry.get("legal").leases == 1
    steps = fakes.engine.steps
    if leave == "cancel":
        call.cancel()
    else:
        await stubs.channel.close()
    await asyncio.sleep(0.2)
    assert fakes.engine.steps - steps <= 2
    assert await settled(server)


async def test_leaving_a_unary_call(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.step_seconds = 0.02
    call = stubs.inference.Generate(ask("legal", sampling={"min_tokens": 500, "max_tokens": 500}))
    await until(lambda: fakes.engine.steps > 0)
    call.cancel()
    assert await settled(server)


async def test_leaving_while_the_adapter_loads(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.load_seconds = 5
    call = stubs.inference.Generate(ask("legal"))
    await asyncio.sleep(0.1)
    call.cancel()
    assert await settled(server)


async def test_a_reader_that_pauses_gets_everything(fakes: SimpleNamespace, stubs: SimpleNamespace) -> None:
    events = aiter(stubs.inference.StreamGenerate(long_stream(600)))
    got = [await anext(events)]
    await asyncio.sleep(0.3)
    got += [event async for event in events]
    assert sum(event.delta.tokens for event in got) == 600
    assert got[-1].finished.usage.completion_tokens == 600


END = Finished(FinishReason.STOP)


FEEDING: set[asyncio.Task[None]] = set()


def source(*events: Delta | Finished | EngineFailed, gap: bool = True) -> EventStream:
    """A generation whose events come one after the other, or are there already."""
    stream = EventStream(lambda _: None, lambda _: None)

    async def feed() -> None:
        for event in events:
            await asyncio.sleep(0.001)
            stream.put(event)

    if gap:
        FEEDING.add(task := asyncio.create_task(feed()))
        task.add_done_callback(FEEDING.discard)
    else:
        for event in events:
            stream.put(event)
    return stream


async def read(generation: Generation, every: int) -> AsyncGenerator[Delta | Finished, None]:
    """The events as a stream writes them."""
    async with aclosing(batches(buffered(generation), every)) as each:
        async for batch in each:
            for event in joined(batch):
                if event is not None:
                    yield event


async def test_a_quick_reader_sees_every_delta() -> None:
    got = [event async for event in read(source(Delta("a"), Delta("b"), END), 1)]
    assert got == [Delta("a"), Delta("b"), END]


async def test_a_slow_reader_gets_joined_deltas() -> None:
    entry = TokenLogprob("b", 1, -0.5)
    got = []
    async with aclosing(read(source(Delta("a"), Delta("b", 1, (entry,)), Delta("c"), END), 1)) as events:
        async for event in events:
            got.append(event)
            await asyncio.sleep(0.05)
    assert got == [Delta("a"), Delta("bc", 2, (entry,)), END]


async def test_interval_joins_steps_after_the_first() -> None:
    deltas = [Delta(str(i)) for i in range(6)]
    got = [event async for event in read(source(*deltas, END), every=3)]
    assert got == [Delta("0"), Delta("123", 3), Delta("45", 2), END]


async def test_an_error_comes_after_what_was_there() -> None:
    events = read(source(Delta("a"), EngineFailed("x"), gap=False), 1)
    assert await anext(events) == Delta("a")
    with pytest.raises(EngineFailed):
        await anext(events)


async def test_closing_stops_the_reading() -> None:
    closed = asyncio.Event()

    class Endless:
        async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
            try:
                while True:
                    yield Delta("x")
                    await asyncio.sleep(0)
            finally:
                closed.set()

        def cancel(self) -> None:
            """Nothing."""

    async with aclosing(read(Endless(), 1)) as events:
        assert await anext(events) == Delta("x")
    await asyncio.wait_for(closed.wait(), 1)


async def test_a_whole_answer_wakes_its_reader_twice() -> None:
    stream = EventStream(lambda _: None, lambda _: None)
    sizes: list[int] = []

    async def whole() -> None:
        async for batch in batches(stream, ALL):
            sizes.append(len(batch))

    reading = asyncio.create_task(whole())
    for event in (*[Delta("x")] * 5, END):
        await asyncio.sleep(0.002)
        stream.put(event)
    await asyncio.wait_for(reading, 5)
    assert sizes == [1, 5]


async def test_a_generation_that_only_iterates_is_read_too() -> None:
    class Plain:
        async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
            for event in (Delta("a"), Delta("b"), END):
                yield event

        def cancel(self) -> None:
            """Nothing."""

    assert [event async for event in read(Plain(), 1)] == [Delta("a"), Delta("b"), END]
