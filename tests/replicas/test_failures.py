"""Replicas that are killed, hang, are cut off, are slow, or are not what they should be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from router.engine.base import (
    AdapterArtifact,
    Delta,
    Finished,
    Generation,
    PoolingRequest,
    digest_of_mixture,
)
from router.errors import AdapterRejected, ConfigError, Overloaded, ResourceExhausted, Unavailable
from router.replicas.engine import ABSENT, choose
from router.replicas.link import LinkLost
from router.replicas.membership import FixedMembership
from router.types import Constraint, FinishReason
from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import Fleet, Make, job, text_of


async def outcome(generation: Generation) -> str:
    """The text, or the name of the error."""
    try:
        return "".join([event.text async for event in generation if isinstance(event, Delta)])
    except Exception as error:
        return type(error).__name__


def busy(fleet: Fleet) -> list[str]:
    """Replicas with something to do."""
    return [name for name, engine in fleet.made.items() if engine.busy]


async def kill(fleet: Fleet, name: str) -> None:
    await asyncio.to_thread(fleet.link(name).kill)


async def test_jobs_without_a_token_go_elsewhere_and_others_end(fleet: Make) -> None:
    made = await fleet(2)
    for engine in made.made.values():
        engine.hold()
    fresh = [made.engine.submit(job()) for _ in range(8)]
    begun = made.engine.submit(job(min_tokens=1000, max_tokens=1000))
    await until(lambda: len(busy(made)) == 2)
    (at,) = [name for name, engine in made.made.items() if any(j.params.min_tokens for j in engine.jobs)]
    other = "1" if at == "0" else "0"
    reading = begun.__aiter__()
    assert len(made.made[at].jobs) > 1
    made.made[at].max_running = 1  # so that all others wait behind `begun`
    made.made[at]._waiting.rotate(-[j.params.min_tokens > 0 for j in made.made[at].jobs].index(True))
    made.made[at].resume()
    assert isinstance(await anext(reading), Delta)
    await kill(made, at)
    made.made[other].resume()
    assert set(await asyncio.gather(*map(outcome, fresh))) == {"[base] one two three"}
    with pytest.raises(Unavailable, match=rf"replica {at} was lost \(it was killed\).*had begun"):
        async for _ in reading:
            pass
    await until(lambda: made.link(at).starts == 2)


async def test_after_a_loss_adapters_are_loaded_where_requests_go(fleet: Make) -> None:
    made = await fleet(3)
    adapters = await made.load(*(f"a{i}" for i in range(6)))
    assert [len(engine.status().host_adapters) for engine in made.made.values()] == [2, 2, 2]
    await kill(made, "1")
    for adapter in adapters:
        assert await outcome(made.engine.submit(job(adapter=adapter.digest))) == text_of(adapter)
    assert all(map(made.homes, adapters))


async def test_all_are_lost_and_come_back(fleet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await fleet(2)
    one, two = fake_adapter("one"), fake_adapter("two")
    parts = ((one.digest, 0.5), (two.digest, 0.5))
    mixture = AdapterArtifact("mixture", "", digest_of_mixture(parts), {}, parts=parts)
    for adapter in (one, two, mixture):
        await made.engine.load(adapter)
    steps = made.engine.status().steps
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    def blocked(link: Any) -> Any:
        original = link.start

        def start() -> Any:
            asyncio.run_coroutine_threadsafe(waits.wait(), loop).result(10)
            return original()

        return start

    for link in made.links:
        monkeypatch.setattr(link, "start", blocked(link))
        await kill(made, link.name)
    await until(lambda: not any(replica.up for replica in made.engine.replicas))
    with pytest.raises(Unavailable, match="no replica is up"):
        made.engine.submit(job())
    with pytest.raises(Unavailable):
        await made.engine.read(PoolingRequest([1], depth=0.5))
    assert made.engine.status().busy  # so that health says NOT_SERVING after stall_seconds
    assert made.engine.status().steps >= steps
    waits.set()
    await until(lambda: all(replica.up for replica in made.engine.replicas))
    assert not made.engine.status().busy
    assert await outcome(made.engine.submit(job(adapter=mixture.digest))) == text_of(mixture)


async def test_one_that_hangs_is_replaced(fleet: Make) -> None:
    made = await fleet(2, stall_seconds=0.07)
    made.made["0"].hold()
    hung = made.made["0"]
    asked = [made.engine.submit(job()) for _ in range(6)]
    assert set(await asyncio.gather(*map(outcome, asked))) == {"[base] one two three"}
    await until(lambda: made.made["0"] is not hung)
    assert hung.jobs  # they were there first


async def test_one_that_stalls_gets_nothing_new(fleet: Make) -> None:
    made = await fleet(2, stall_seconds=0.3)
    made.made["0"].hold()
    asked = [made.engine.submit(job()) for _ in range(6)]
    await until(lambda: bool(made.engine.replicas[0].stalls))
    assert made.engine.status().flaws[0].startswith("replica 0 stalls: it made no step for")
    had = len(made.made["0"].jobs)
    assert had
    more = [await outcome(made.engine.submit(job())) for _ in range(6)]
    assert len(made.made["0"].jobs) == had
    made.made["0"].resume()  # in time
    assert set(await asyncio.gather(*map(outcome, asked))) == {"[base] one two three"} == set(more)
    await until(lambda: not made.engine.status().flaws)
    assert made.link("0").starts == 1


async def test_what_a_stalled_replica_has_goes_elsewhere_before_it_is_given_up(fleet: Make) -> None:
    made = await fleet(2, stall_seconds=0.5)
    (adapter,) = await made.load("a")
    (at,) = made.homes(adapter)
    begun = made.engine.submit(job(adapter=adapter.digest, min_tokens=1000, max_tokens=1000))
    reading = begun.__aiter__()
    assert isinstance(await anext(reading), Delta)
    made.made[at].hold()
    fresh = [made.engine.submit(job(adapter=adapter.digest)) for _ in range(4)]
    assert set(await asyncio.gather(*map(outcome, fresh))) == {text_of(adapter)}
    with pytest.raises(Unavailable, match=rf"replica {at} stalls \(it made no step.*had begun"):
        async for _ in reading:
            pass
    assert made.link(at).starts == 1
    made.made[at].resume()
    await until(lambda: not made.made[at].busy)  # what went elsewhere is cancelled here
    await until(lambda: not made.engine.status().flaws)


async def test_one_that_failed_is_replaced(fleet: Make) -> None:
    made = await fleet(1)
    assert await outcome(made.engine.submit(job()))
    broken = made.made["0"]
    broken.break_down("the device is lost")
    await until(lambda: made.made["0"] is not broken)
    await until(lambda: made.engine.replicas[0].up)
    assert await outcome(made.engine.submit(job())) == "[base] one two three"


async def test_a_partition_ends_on_both_sides(fleet: Make) -> None:
    made = await fleet(2, stall_seconds=0.2, silence=0.2)
    (adapter,) = await made.load("a")
    (at,) = made.homes(adapter)
    engine, host = made.made[at], made.link(at).host
    assert host is not None
    engine.hold()
    asked = made.engine.submit(job(adapter=adapter.digest))
    await until(lambda: engine.busy)
    made.link(at).cut()
    await until(lambda: not host.edges)  # the edge was silent for too long: its jobs and holds end
    engine.resume()
    await until(lambda: not engine.busy)
    assert await outcome(asked) == text_of(adapter)  # by the other
    made.link(at).mend()
    await until(lambda: all(replica.up for replica in made.engine.replicas))


async def test_a_short_partition_costs_no_replica(fleet: Make) -> None:
    made = await fleet(1, stall_seconds=5.0, silence=0.1)
    (adapter,) = await made.load("a")
    made.link("0").cut()
    host = made.link("0").host
    assert host is not None
    await until(lambda: not host.edges)
    made.link("0").mend()
    await until(lambda: bool(host.edges))
    await until(lambda: made.engine.replicas[0].up)
    assert await outcome(made.engine.submit(job(adapter=adapter.digest))) == text_of(adapter)
    assert made.link("0").starts == 1


async def test_a_slow_one_gets_less(fleet: Make) -> None:
    made = await fleet(2, step_seconds=0.01, each={"1": {"step_seconds": 0.1}}, max_running=32)

    async def client() -> None:
        for _ in range(8):
            assert await outcome(made.engine.submit(job("one")))

    await asyncio.gather(*(client() for _ in range(8)))
    counts = [len(engine.jobs) for engine in made.made.values()]
    assert sum(counts) == 64
    assert counts[0] > 2 * counts[1]


async def test_another_base_in_its_place_is_refused(fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = await fleet(2)
    assert await outcome(made.engine.submit(job()))
    link = made.link("1")
    make = link._make

    def other() -> Any:
        engine = make()
        engine._info = replace(engine._info, dtype="bfloat16")  # type: ignore[attr-defined]
        return engine

    link._make = other
    await kill(made, "1")
    await until(lambda: "bfloat16" in made.engine.replicas[1].problem)
    assert not made.engine.replicas[1].up
    assert await outcome(made.engine.submit(job())) == "[base] one two three"
    link._make = make
    await until(lambda: made.engine.replicas[1].up)


async def test_no_replica_is_no_fleet() -> None:
    with pytest.raises(ConfigError, match="needs a replica"):
        FixedMembership([])


def fails() -> Any:
    raise ConfigError("model 'x' cannot be loaded")


async def test_where_none_starts_the_edge_does_not(fleet: Make) -> None:
    made = await fleet(2, start=False)
    for link in made.links:
        link._make = fails
    with pytest.raises(ConfigError, match=r"replica \d does not start: model 'x' cannot be loaded"):
        made.engine.start()


async def test_one_that_does_not_start_is_shown_and_tried_again(fleet: Make) -> None:
    made = await fleet(3, start=False)
    make, made.link("0")._make = made.link("0")._make, fails
    await asyncio.to_thread(made.engine.start)
    assert made.engine.status().flaws == ("replica 0 does not start: model 'x' cannot be loaded",)
    assert await outcome(made.engine.submit(job())) == "[base] one two three"
    made.link("0")._make = make
    await until(lambda: made.engine.replicas[0].up)
    assert made.engine.status().flaws == ()


async def test_one_with_another_base_is_shown_and_gets_nothing(fleet: Make) -> None:
    made = await fleet(3, start=False, each={"0": {"context_length": 99}})
    await asyncio.to_thread(made.engine.start)
    (flaw,) = made.engine.status().flaws
    assert flaw == "replica 0 does not start: its context_length is 99, that of the others 2048"
    assert made.engine.info.context_length == 2048
    asked = [made.engine.submit(job()) for _ in range(6)]
    assert {await outcome(generation) for generation in asked} == {"[base] one two three"}
    assert not made.made["0"].jobs


@pytest.mark.parametrize("error", [ResourceExhausted("too large"), AdapterRejected("rank 99")])
async def test_an_adapter_that_fits_nowhere(fleet: Make, error: Exception) -> None:
    made = await fleet(2)
    asked: list[str] = []

    def refusing(name: str) -> Any:
        async def load(artifact: AdapterArtifact) -> int:
            asked.append(name)
            raise error

        return load

    for name, engine in made.made.items():
        engine.load = refusing(name)  # type: ignore[method-assign]
    with pytest.raises(type(error), match=str(error)):
        await made.engine.load(fake_adapter("large"))
    assert len(asked) == (2 if isinstance(error, ResourceExhausted) else 1)
    assert await made.engine.unload(fake_adapter("large").digest) == 0
    for engine in made.made.values():
        del engine.load
    assert await made.engine.load(fake_adapter("large")) == 8


async def test_a_full_replica_lets_another_hold_it(fleet: Make) -> None:
    made = await fleet(2)

    async def full(artifact: AdapterArtifact) -> int:
        raise ResourceExhausted("no memory")

    first = made.made["0"]
    first.load = full  # type: ignore[method-assign]
    for i in range(4):
        await made.engine.load(fake_adapter(f"a{i}"))
    assert len(made.made["1"].status().host_adapters) == 4


async def test_memory_of_replicas_adds_up_and_no_one_has_more_than_its_own(fleet: Make) -> None:
    made = await fleet(2, host_bytes=24)  # three adapters each
    adapters = await made.load(*(f"a{i}" for i in range(6)))
    assert [e.status().host_bytes for e in made.made.values()] == [24, 24]
    adapters += await made.load("a6", "a7")
    assert [e.status().host_bytes for e in made.made.values()] == [24, 24]
    for adapter in adapters:
        assert await outcome(made.engine.submit(job(adapter=adapter.digest))) == text_of(adapter)


async def test_who_is_left_answers_for_more_adapters_than_it_has_memory_for(
    fleet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await fleet(2, host_bytes=24)  # three adapters each
    adapters = await made.load(*(f"a{i}" for i in range(6)))

    def gone() -> Any:
        raise LinkLost("its machine is gone")

    monkeypatch.setattr(made.link("1"), "start", gone)
    await kill(made, "1")
    await until(lambda: "gone" in made.engine.replicas[1].problem)
    for adapter in (*adapters, *adapters):
        text = await outcome(made.engine.submit(job(adapter=adapter.digest)))
        assert text == text_of(adapter)
    assert made.made["0"].status().host_bytes == 24
    made.made["0"].hold()
    busy = [made.engine.submit(job(adapter=adapter.digest)) for adapter in adapters[3:]]
    await until(lambda: made.made["0"].busy)
    refused = made.engine.submit(job(adapter=adapters[0].digest))
    assert await outcome(refused) == "Overloaded"  # all that is there is in use
    made.made["0"].resume()
    assert len({await outcome(generation) for generation in busy}) == 3


async def test_what_ends_every_engine_is_not_asked_for_ever(fleet: Make) -> None:
    made = await fleet(5)
    for engine in made.made.values():
        engine.hold()
    poison = asyncio.ensure_future(outcome(made.engine.submit(job())))
    killed: list[str] = []
    while not poison.done():
        for name in busy(made):
            if made.made[name].jobs:
                killed.append(name)
                await kill(made, name)
        await asyncio.sleep(0.005)
    assert poison.result() == "Unavailable"
    assert len(killed) == 3


async def test_one_that_refuses_sends_the_job_on(fleet: Make) -> None:
    made = await fleet(2)

    def full(job: Any) -> Any:
        raise Overloaded("the queue is full", bound="engine")

    made.made["0"].submit = full  # type: ignore[method-assign]
    asked = [made.engine.submit(job()) for _ in range(8)]
    assert set(await asyncio.gather(*map(outcome, asked))) == {"[base] one two three"}
    assert len(made.made["1"].jobs) == 8


async def test_readings_and_constraints_go_elsewhere(fleet: Make) -> None:
    made = await fleet(2)
    for engine in made.made.values():
        engine.hold()
    reading = asyncio.ensure_future(made.engine.read(PoolingRequest([65, 66], depth=0.5)))
    await until(lambda: len(busy(made)) == 1)
    (at,) = busy(made)
    made.made["1" if at == "0" else "0"].resume()
    await kill(made, at)
    assert np.isfinite(await reading).all()
    await until(lambda: all(replica.up for replica in made.engine.replicas))
    constraint = Constraint("choices", choices=("a", "b"))
    assert (await made.engine.compile(constraint)).constraint == constraint


async def test_one_that_is_lost_again_and_again_is_not_tried_without_a_pause(fleet: Make) -> None:
    made = await fleet(2)
    link = made.link("0")

    async def broken(edge: str) -> Any:
        raise LinkLost("its stream breaks at once")
        yield

    link.batches = broken  # type: ignore[method-assign]
    assert await outcome(made.engine.submit(job())) == "[base] one two three"
    await asyncio.sleep(0.3)
    assert 1 <= made.engine.replicas[0].losses <= 3


async def test_a_background_job_is_not_moved(fleet: Make) -> None:
    made = await fleet(2)
    for engine in made.made.values():
        engine.hold()
    shadow = made.engine.submit(replace(job(), background=True))
    await until(lambda: len(busy(made)) == 1)
    await kill(made, busy(made)[0])
    assert [e.reason async for e in shadow if isinstance(e, Finished)] == [FinishReason.CANCELLED]


async def test_a_request_goes_beside_its_crowded_home(fleet: Make) -> None:
    made = await fleet(2, max_running=2)
    (adapter,) = await made.load("a")
    (home,) = made.homes(adapter)
    made.made[home].hold()
    asked = [made.engine.submit(job(adapter=adapter.digest)) for _ in range(ABSENT + 2)]
    await until(lambda: bool(made.made["1" if home == "0" else "0"].jobs))
    made.made[home].resume()
    assert {await outcome(generation) for generation in asked} == {text_of(adapter)}


async def test_where_no_replica_beside_takes_the_adapter_it_waits_where_it_is(fleet: Make) -> None:
    made = await fleet(2, max_running=2)
    (adapter,) = await made.load("a")
    (home,) = made.homes(adapter)

    async def full(artifact: AdapterArtifact) -> int:
        raise ResourceExhausted("no memory is left")

    made.made["1" if home == "0" else "0"].load = full  # type: ignore[method-assign]
    made.made[home].hold()
    asked = [made.engine.submit(job(adapter=adapter.digest)) for _ in range(12)]
    await until(lambda: len(made.made[home].jobs) == 12)
    made.made[home].resume()
    assert {await outcome(generation) for generation in asked} == {text_of(adapter)}


@dataclass
class Kept:
    """A replica as the choice sees it."""

    held: int
    adapters: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("replicas", "adapter", "best"),
    [
        ([Kept(3), Kept(2), Kept(4)], None, 1),
        ([Kept(ABSENT - 1, ("a",)), Kept(0)], "a", 0),
        ([Kept(ABSENT + 1, ("a",)), Kept(0)], "a", 1),
        ([Kept(0, ("b", "c")), Kept(0, ("b",))], "a", 1),
    ],
)
def test_a_request_goes_where_few_are_and_its_adapter_is(
    replicas: list[Kept], adapter: str | None, best: int
) -> None:
    assert choose(replicas, adapter) is replicas[best]


def test_among_equals_each_gets_some() -> None:
    equal = [Kept(1), Kept(1)]
    assert {id(choose(equal)) for _ in range(100)} == {id(one) for one in equal}


async def test_one_that_stops_by_itself_cancels_nothing_of_others(fleet: Make) -> None:
    made = await fleet(2)
    for engine in made.made.values():
        engine.hold()
    asked = [made.engine.submit(job()) for _ in range(4)]
    await until(lambda: len(busy(made)) == 2)
    made.made["0"].close()  # as by a signal: it says CANCELLED of what ran
    made.made["1"].resume()
    assert set(await asyncio.gather(*map(outcome, asked))) == {"[base] one two three"}
