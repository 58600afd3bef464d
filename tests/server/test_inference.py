"""InferenceService: who answered is told; who leaves costs nothing more; a slow reader gets longer deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from router.engine.base import Delta, Finished, Generation, batches, buffered
from router.engine.output import EventStream
from router.errors import EngineFailed
from router.server.app import ServerApp
from router.server.inference import ALL, joined
from router.types import FinishReason, TokenLogprob
from router.v1 import inference_pb2 as pb
from tests.server.helpers import ask, long_stream, settled, stream, until

pytestmark = pytest.mark.slow


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


async def test_nothing_is_left_behind(server: ServerApp, stubs: SimpleNamespace) -> None:
    await stubs.inference.Generate(ask("legal"))
    assert all(info.leases == 0 for info in server.registry.list())
    assert server.admission.in_flight == 0
    assert not server.engine.status().busy


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
    events = aiter(stubs.inference.StreamGenerate(long_stream(2000)))
    got = [await anext(events)]
    await asyncio.sleep(0.3)
    got += [event async for event in events]
    assert sum(event.delta.tokens for event in got) == 2000
    assert got[-1].finished.usage.completion_tokens == 2000


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
