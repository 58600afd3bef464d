from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from router.engine.base import AdapterArtifact, Delta, EngineStatus, Finished, Reading
from router.engine.fake import FakeEngine
from router.errors import EngineFailed, FailedPrecondition, InvalidRequest, RouterError, Unavailable
from router.fleet.host import EngineHost
from router.fleet.messages import (
    Batch,
    Cancel,
    Command,
    Compile,
    Event,
    Load,
    Post,
    Read,
    Submit,
    Unload,
    sent,
)
from router.types import Constraint, FinishReason
from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter
from tests.fleet.conftest import job


class Edge:
    """The other end of a host's stream."""

    def __init__(self, host: EngineHost, name: str = "edge") -> None:
        self.host, self.name, self.number = host, name, 0
        self.stream = host.batches(name)
        self.batches: list[Batch] = []
        self.ended = ""
        self.task = asyncio.ensure_future(self._read(self.stream))

    async def _read(self, stream: AsyncGenerator[Batch, None]) -> None:
        try:
            async for batch in stream:
                self.batches.append(batch)
        except Unavailable as error:
            self.ended = error.message

    def post(self, *commands: Command) -> None:
        self.host.post(Post(self.name, self.number, commands))
        self.number += 1

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    def of(self, key: int) -> list[Any]:
        return [event.what for event in self.events if event.key == key]

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
        host = EngineHost(engine, silence=silence)
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
    monkeypatch.setattr("router.fleet.host.BEAT", 100.0)
    engine, _, (edge,) = await meet(step_seconds=0.005)
    edge.post(*(Submit(key, sent(job())) for key in range(8)))
    for key in range(8):
        assert isinstance(await edge.last(key), Finished)
    busy = [batch for batch in edge.batches if batch.events]
    assert len(busy) <= 2 * engine.steps  # not one for each of 40 events
    assert [batch.number for batch in edge.batches] == list(range(len(edge.batches)))
    assert {len(edge.of(key)) for key in range(8)} == {5}
    statuses = [batch.status for batch in edge.batches if batch.status]
    assert len(statuses) == 1
    assert isinstance(statuses[0], EngineStatus)


async def test_posts_may_overtake_each_other(meet: Meet) -> None:
    engine, host, (edge,) = await meet(step_seconds=0.005)
    posts = [
        Post("edge", 0, (Submit(0, sent(job(min_tokens=400, max_tokens=400))),)),
        Post("edge", 1, (Cancel(0),)),
        Post("edge", 2, (Submit(1, sent(job())),)),
    ]
    for post in reversed(posts):
        host.post(post)
    assert (await edge.last(0)).reason is FinishReason.CANCELLED
    assert (await edge.last(1)).reason is FinishReason.STOP
    assert len(engine.jobs) == 2


async def test_a_post_that_never_comes_ends_the_stream(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.fleet.host.MOST_AHEAD", 3)
    _, host, (edge,) = await meet()
    for number in range(1, 6):
        host.post(Post("edge", number))
    await until(lambda: edge.ended)
    assert "post 0 never came" in edge.ended
    host.post(Post("edge", 0, (Submit(0, sent(job())),)))  # nobody listens to it any more
    assert not host.edges


async def test_a_silent_edge_loses_jobs_and_holds(meet: Meet) -> None:
    engine, host, (silent, other) = await meet("silent", "other", silence=0.2, step_seconds=0.001)
    one, both = fake_adapter("one"), fake_adapter("both")
    silent.post(Load(0, one.digest, one), Load(1, both.digest, both))
    other.post(Load(0, both.digest, both))
    await asyncio.gather(silent.last(0), silent.last(1), other.last(0))
    silent.post(Submit(2, sent(job(adapter=one.digest, min_tokens=1500, max_tokens=1500))))
    await until(lambda: engine.busy)
    while not silent.ended:
        other.post()
        await asyncio.sleep(0.02)
    assert "nothing was heard" in silent.ended
    while one.digest in engine.status().host_adapters:
        other.post()
        await asyncio.sleep(0.01)
    assert not engine.busy
    assert host.edges == ("other",)
    assert host.holders(both.digest) == {"other"}
    assert engine.status().host_adapters == (both.digest,)


async def test_who_was_stopped_itself_blames_nobody(meet: Meet) -> None:
    _, host, (edge,) = await meet(silence=0.3)
    edge.post()
    time.sleep(0.5)  # noqa: ASYNC251 - as a stopped process
    await asyncio.sleep(0.05)
    edge.post()
    await asyncio.sleep(0.1)
    assert host.edges == ("edge",)


async def test_an_adapter_is_there_until_the_last_edge_lets_go(meet: Meet) -> None:
    engine, _, (one, two) = await meet("one", "two")
    adapter = fake_adapter("a")
    for edge in (one, two):
        edge.post(Load(0, adapter.digest, adapter), Load(1, adapter.digest, adapter))
        assert [await edge.last(0), await edge.last(1)] == [8, 8]
    one.post(Unload(2, adapter.digest))
    assert await one.last(2) == 0
    assert engine.status().host_adapters
    two.post(Unload(2, adapter.digest), Unload(3, adapter.digest))
    assert [await two.last(2), await two.last(3)] == [8, 0]
    assert not engine.status().host_adapters


async def test_what_is_refused_is_told_by_its_own_error(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    edge.post(
        Submit(0, sent(job(adapter="absent"))),
        Compile(1, Constraint("regex", "(")),
        Read(2, Reading([], depth=0.5)),
        Load(3, "d", "not weights"),
        Submit(4, sent(job(constraint=Constraint("regex", "(")))),
        Compile(5, Constraint("regex", "a")),
    )
    refused: list[type[RouterError]] = [
        FailedPrecondition,
        InvalidRequest,
        InvalidRequest,
        EngineFailed,
        InvalidRequest,
    ]
    for key, kind in enumerate(refused):
        assert type(await edge.last(key)) is kind
    assert await edge.last(5) is None
    engine.fail_step("boom")
    edge.post(Submit(6, sent(job())))
    assert type(await edge.last(6)) is EngineFailed


async def test_a_job_may_be_cancelled_while_its_constraint_is_compiled(meet: Meet) -> None:
    engine, _, (edge,) = await meet()
    slow = asyncio.Event()
    compiled = engine.compile

    async def compile(constraint: Constraint, tenant: str) -> Any:
        await slow.wait()
        return await compiled(constraint, tenant)

    engine.compile = compile
    asked = sent(job(constraint=Constraint("choices", choices=("a", "b"))))
    edge.post(Submit(0, asked), Submit(1, asked))
    await asyncio.sleep(0.01)
    edge.post(Cancel(0))
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
    edge.post(Load(0, adapter.digest, adapter))
    await asyncio.sleep(0.01)
    edge.task.cancel()
    await until(lambda: unloaded)
    assert unloaded == [8]
    assert not engine.status().host_adapters


async def test_weights_are_fetched_from_where_they_were_put(meet: Meet) -> None:
    engine = FakeEngine()
    fetched: list[object] = []

    async def fetch(weights: object) -> AdapterArtifact:
        fetched.append(weights)
        return fake_adapter("a")

    host = EngineHost(engine, fetch)
    host.start()
    edge = Edge(host)
    await until(lambda: edge.batches)
    edge.post(Load(0, fake_adapter("a").digest, "where"), Load(1, fake_adapter("a").digest, "where"))
    assert [await edge.last(0), await edge.last(1)] == [8, 8]
    assert fetched == ["where"]
    edge.task.cancel()


async def test_an_edge_has_one_stream(meet: Meet) -> None:
    _, host, _ = await meet()
    with pytest.raises(Unavailable, match="already"):
        await anext(host.batches("edge"))
