from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import pytest

from router.engine.base import Delta, Finished, PoolingRequest
from router.engine.fake import FakeEngine
from router.errors import EngineFailed, FailedPrecondition, InvalidRequest, RouterError, Unavailable
from router.replicas.host import EngineHost
from router.replicas.messages import compile_, delta_of, error_of, finished_of, load, read, submit
from router.types import Constraint, FinishReason
from router.v1 import engine_pb2 as pb
from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter, read_folder
from tests.replicas.conftest import job

CANCEL = pb.EngineCommand(cancel=pb.EngineCommand.Cancel())
DRAIN = pb.EngineCommand(drain=pb.EngineCommand.Drain())


def unload(digest: str) -> pb.EngineCommand:
    return pb.EngineCommand(unload=pb.EngineCommand.Unload(digest=digest))


def value_of(event: pb.EngineEvent) -> Any:
    """What an event holds; the name of what is empty."""
    kind = event.WhichOneof("what")
    read = {"delta": delta_of, "finished": finished_of, "error": error_of, "size": int}
    return read[kind](getattr(event, kind)) if kind in read else kind


class Edge:
    """The other end of a host's stream."""

    def __init__(self, host: EngineHost, name: str = "edge") -> None:
        self.host, self.name = host, name
        self.session = host.open(name)
        self.stream = host.batches(self.session)
        self.batches: list[pb.AttachResponse] = []
        self.ended = ""
        self.task = asyncio.ensure_future(self._read(self.stream))

    async def _read(self, stream: AsyncGenerator[pb.AttachResponse, None]) -> None:
        try:
            async for batch in stream:
                self.batches.append(batch)
        except Unavailable as error:
            self.ended = error.message

    def send(self, commands: Mapping[int, pb.EngineCommand] | None = None) -> None:
        """Commands by key; with none a sign of life."""
        request = pb.AttachRequest()
        for key, command in (commands or {}).items():
            request.commands.append(command)
            request.commands[-1].key = key
        self.host.receive(self.session, request)

    def of(self, key: int) -> list[Any]:
        events = [event for batch in self.batches for event in batch.events]
        return [value_of(event) for event in events if event.key == key]

    async def last(self, key: int) -> Any:
        await until(lambda: any(not isinstance(what, Delta) for what in self.of(key)))
        return self.of(key)[-1]


Meet = Callable[..., Any]


@pytest.fixture
async def meet() -> AsyncGenerator[Meet, None]:
    """A host with a fake engine, and its edges."""
    hosts: list[EngineHost] = []
    edges: list[Edge] = []

    async def met(
        *names: str, silence: float = 30.0, **options: Any
    ) -> tuple[FakeEngine, EngineHost, list[Edge]]:
        engine = FakeEngine(**options)
        host = EngineHost(engine, read_folder, silence=silence)
        host.start()
        hosts.append(host)
        made = [Edge(host, name) for name in names or ("edge",)]
        edges.extend(made)
        await until(lambda: all(edge.batches for edge in made))
        return engine, host, made

    yield met
    for edge in edges:
        edge.task.cancel()
    for host in hosts:
        host.close()


async def test_a_batch_carries_the_whole_step_and_now_and_then_the_status(
    meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.replicas.host.BEAT", 100.0)
    engine, _, (edge,) = await meet(step_seconds=0.005)
    edge.send({key: submit(job()) for key in range(8)})
    for key in range(8):
        assert isinstance(await edge.last(key), Finished)
    busy = [batch for batch in edge.batches if batch.events]
    assert len(busy) <= 2 * engine.steps  # not one for each of 40 events
    assert {len(edge.of(key)) for key in range(8)} == {5}
    assert len([batch for batch in edge.batches if batch.HasField("state")]) == 1


async def test_a_command_of_a_later_release_is_refused_alone(meet: Meet) -> None:
    _, _, (edge,) = await meet()
    edge.send({0: pb.EngineCommand(), 1: submit(job())})
    error = await edge.last(0)
    assert isinstance(error, FailedPrecondition)
    assert "cannot do that" in str(error)
    assert isinstance(await edge.last(1), Finished)


async def test_a_silent_edge_loses_jobs_and_holds(meet: Meet) -> None:
    engine, host, (silent, other) = await meet("silent", "other", silence=0.2, step_seconds=0.001)
    one, both = fake_adapter("one"), fake_adapter("both")
    silent.send({0: load(one), 1: load(both)})
    await silent.last(1)
    other.send({0: load(both)})
    await asyncio.gather(silent.last(0), silent.last(1), other.last(0))
    silent.send({2: submit(job(adapter=one.digest, min_tokens=1500, max_tokens=1500))})
    await until(lambda: engine.busy)
    while not silent.ended:
        other.send()
        await asyncio.sleep(0.02)
    assert "was silent for" in silent.ended
    while one.digest in engine.status().host_adapters:
        other.send()
        await asyncio.sleep(0.01)
    assert not engine.busy
    assert host.edges == ("other",)
    assert host.holders(both.digest) == {"other"}
    assert engine.status().host_adapters == (both.digest,)


async def test_who_was_stopped_itself_blames_nobody(meet: Meet) -> None:
    _, host, (edge,) = await meet(silence=0.3)
    edge.send()
    time.sleep(0.5)  # noqa: ASYNC251 - as a stopped process
    await asyncio.sleep(0.05)
    edge.send()
    await asyncio.sleep(0.1)
    assert host.edges == ("edge",)


async def test_an_adapter_is_there_until_the_last_edge_lets_go(meet: Meet) -> None:
    engine, _, (one, two) = await meet("one", "two")
    adapter = fake_adapter("a")
    for edge in (one, two):
        edge.send({0: load(adapter), 1: load(adapter)})
        assert [await edge.last(0), await edge.last(1)] == [8, 8]
    one.send({2: unload(adapter.digest)})
    assert await one.last(2) == 0
    assert engine.status().host_adapters
    two.send({2: unload(adapter.digest), 3: unload(adapter.digest)})
    assert [await two.last(2), await two.last(3)] == [8, 0]
    assert not engine.status().host_adapters


async def test_what_is_refused_is_told_by_its_own_error(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    edge.send(
        {
            0: submit(job(adapter="ab" * 32)),
            1: compile_(Constraint("regex", "("), ""),
            2: read(PoolingRequest([], depth=0.5)),
            3: pb.EngineCommand(),  # as one of a later release looks here
            4: submit(job(constraint=Constraint("regex", "("))),
            5: compile_(Constraint("regex", "a"), ""),
        }
    )
    refused: list[type[RouterError]] = [
        FailedPrecondition,
        InvalidRequest,
        InvalidRequest,
        FailedPrecondition,
        InvalidRequest,
    ]
    for key, kind in enumerate(refused):
        assert type(await edge.last(key)) is kind
    assert await edge.last(5) == "done"
    engine.fail_step("boom")
    edge.send({6: submit(job())})
    assert type(await edge.last(6)) is EngineFailed


async def test_a_job_may_be_cancelled_while_its_constraint_is_compiled(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    slow = asyncio.Event()
    compiled = engine.compile

    async def compile(constraint: Constraint, tenant: str) -> Any:
        await slow.wait()
        return await compiled(constraint, tenant)

    engine.compile = compile
    asked = job(constraint=Constraint("choices", choices=("a", "b")))
    edge.send({0: submit(asked), 1: submit(asked)})
    await asyncio.sleep(0.01)
    edge.send({0: CANCEL})
    assert (await edge.last(0)).reason is FinishReason.CANCELLED
    slow.set()
    assert (await edge.last(1)).reason is FinishReason.STOP
    assert len(engine.jobs) == 1


async def test_a_load_under_way_is_finished_and_then_let_go(meet: Meet) -> None:
    engine, _, (edge,) = await meet(load_seconds=0.05)
    adapter, unloaded = fake_adapter("a"), []
    unload = engine.unload

    async def noted(digest: str) -> int:
        freed: int = await unload(digest)
        unloaded.append(freed)
        return freed

    engine.unload = noted
    edge.send({0: load(adapter)})
    await asyncio.sleep(0.01)
    edge.task.cancel()
    await until(lambda: unloaded)
    assert unloaded == [8]
    assert not engine.status().host_adapters


async def test_one_that_drains_says_so_at_once_and_is_idle_when_all_is_done(meet: Meet) -> None:
    _, host, (edge,) = await meet(step_seconds=0.005)
    edge.send({0: submit(job()), 1: load(fake_adapter("a"))})
    await edge.last(1)
    edge.send({2: DRAIN})
    await until(lambda: any(batch.state.draining for batch in edge.batches))
    assert host.draining.is_set()
    assert not host.idle
    edge.send({3: unload(fake_adapter("a").digest)})
    await edge.last(0)
    await until(lambda: host.idle)


async def test_an_edge_has_one_stream(meet: Meet) -> None:
    _, host, _ = await meet()
    with pytest.raises(Unavailable, match="already"):
        host.open("edge")
