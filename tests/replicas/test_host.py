from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import pytest

from router.engine.base import AdapterArtifact, Delta, Finished, PoolingRequest, digest_of_mixture
from router.engine.fake import FakeEngine
from router.errors import (
    EngineFailed,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.replicas.host import EngineHost
from router.replicas.messages import compile_, delta_of, error_of, finished_of, load, read, submit
from router.types import Constraint, FinishReason
from router.v1 import engine_pb2 as pb
from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter, read_folder
from tests.replicas.conftest import job

CANCEL = pb.EngineCommand(cancel=pb.EngineCommand.Cancel())
DRAIN = pb.EngineCommand(drain=pb.EngineCommand.Drain())


def loaded(adapter: AdapterArtifact) -> pb.EngineCommand:
    return pb.EngineCommand(load=load(adapter))


def asked(adapter: AdapterArtifact, **params: Any) -> pb.EngineCommand:
    """A job for an adapter."""
    return submit(job(adapter=adapter.digest, **params), load(adapter))


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
        *names: str, silence: float = 30.0, host_bytes: int = 1 << 20, **options: Any
    ) -> tuple[FakeEngine, EngineHost, list[Edge]]:
        engine = FakeEngine(**options)
        host = EngineHost(engine, read_folder, host_bytes, silence=silence)
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


async def test_a_silent_edge_loses_its_jobs(meet: Meet) -> None:
    engine, host, (silent, other) = await meet("silent", "other", silence=0.2, step_seconds=0.001)
    silent.send({0: asked(fake_adapter("a"), min_tokens=1500, max_tokens=1500)})
    await until(lambda: engine.busy)
    while not silent.ended:
        other.send()
        await asyncio.sleep(0.02)
    assert "was silent for" in silent.ended
    await until(lambda: not engine.busy)
    assert host.edges == ("other",)


async def test_who_was_stopped_itself_blames_nobody(meet: Meet) -> None:
    _, host, (edge,) = await meet(silence=0.3)
    edge.send()
    time.sleep(0.5)  # noqa: ASYNC251 - as a stopped process
    await asyncio.sleep(0.05)
    edge.send()
    await asyncio.sleep(0.1)
    assert host.edges == ("edge",)


async def test_a_job_brings_its_adapter_and_one_load_serves_all(meet: Meet) -> None:
    engine, _, (one, two) = await meet("one", "two", load_seconds=0.05)
    adapter, loads, load_ = fake_adapter("a"), [], engine.load

    async def noted(artifact: AdapterArtifact) -> int:
        loads.append(artifact.digest)
        return int(await load_(artifact))

    engine.load = noted
    for edge in (one, two):
        edge.send({0: asked(adapter), 1: loaded(adapter), 2: asked(adapter)})
    for edge in (one, two):
        assert await edge.last(1) == 8
        for key in (0, 2):
            assert isinstance(await edge.last(key), Finished)
    assert loads == [adapter.digest]


async def test_a_mixture_brings_its_parts(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    one, two = fake_adapter("one"), fake_adapter("two")
    parts = ((one.digest, 0.5), (two.digest, 0.5))
    mixture = AdapterArtifact("mixture", "", digest_of_mixture(parts), {}, parts=parts)
    folders = {part.digest: str(part.folder) for part in (one, two)}
    edge.send({0: pb.EngineCommand(load=load(mixture, folders))})
    assert await edge.last(0) == 16
    assert set(engine.status().host_adapters) == {one.digest, two.digest, mixture.digest}


async def test_the_least_recently_used_adapter_makes_room_and_one_in_use_never(meet: Meet) -> None:
    engine, _, (edge,) = await meet(host_bytes=24)  # three adapters
    a, b, c, d, e = (fake_adapter(name) for name in "abcde")
    for key, adapter in enumerate((a, b, c, a, d)):
        edge.send({key: loaded(adapter)})
        assert await edge.last(key) == 8
    assert set(engine.status().host_adapters) == {a.digest, c.digest, d.digest}
    engine.hold()
    edge.send({key: asked(adapter) for key, adapter in zip((10, 11, 12), (a, c, d), strict=True)})
    await until(lambda: len(engine.jobs) == 3)
    edge.send({13: asked(e), 14: loaded(e)})
    assert isinstance(await edge.last(13), Overloaded)  # so that another replica is asked
    error = await edge.last(14)
    assert isinstance(error, ResourceExhausted)
    assert "no memory is left for 'e' (host_memory_mb)" in str(error)
    assert engine.status().host_bytes == 24
    engine.resume()
    await edge.last(10)
    edge.send({15: asked(e)})
    assert isinstance(await edge.last(15), Finished)


async def test_a_job_whose_adapter_is_loading_keeps_its_deadline_and_may_leave(meet: Meet) -> None:
    engine, _, (edge,) = await meet(load_seconds=0.3)
    late = asked(fake_adapter("a"))
    late.submit.seconds_left = 0.05
    edge.send({0: late, 1: asked(fake_adapter("a")), 2: asked(fake_adapter("a"))})
    await asyncio.sleep(0.01)
    edge.send({1: CANCEL})
    assert (await edge.last(1)).reason is FinishReason.CANCELLED
    assert (await edge.last(0)).reason is FinishReason.DEADLINE
    assert (await edge.last(2)).reason is FinishReason.STOP
    assert len(engine.jobs) == 1


async def test_what_is_refused_is_told_by_its_own_error(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    edge.send(
        {
            0: pb.EngineCommand(),
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
    shaped = job(constraint=Constraint("choices", choices=("a", "b")))
    edge.send({0: submit(shaped), 1: submit(shaped)})
    await asyncio.sleep(0.01)
    edge.send({0: CANCEL})
    assert (await edge.last(0)).reason is FinishReason.CANCELLED
    slow.set()
    assert (await edge.last(1)).reason is FinishReason.STOP
    assert len(engine.jobs) == 1


async def test_one_that_drains_says_so_at_once_and_is_idle_when_all_is_done(meet: Meet) -> None:
    _, host, (edge,) = await meet(step_seconds=0.005)
    edge.send({0: submit(job())})
    edge.send({2: DRAIN})
    await until(lambda: any(batch.state.draining for batch in edge.batches))
    assert host.draining.is_set()
    assert not host.idle
    await edge.last(0)
    await until(lambda: host.idle)


async def test_an_edge_has_one_stream(meet: Meet) -> None:
    _, host, _ = await meet()
    with pytest.raises(Unavailable, match="already"):
        host.open("edge")
