from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from benchmarks import fleet_processes
from benchmarks.fake_replicas import Kind, served
from benchmarks.fleet_model import Shape
from benchmarks.fleet_policies import policies
from benchmarks.fleet_processes import SIZE, Fleets, OneFleet, closed_loop, fleet

SHAPE = Shape(adapters=60, replicas=2, memory=10, answer=8, prompt=1)


@pytest.fixture
async def addresses() -> AsyncIterator[dict[str, str]]:
    """Of two replicas in this process."""
    async with AsyncExitStack() as stack:
        kind = Kind(0.001, 0.0001, 0.0001, 0.002)
        yield {name: await stack.enter_async_context(served(kind)) for name in "01"}


async def test_ours_and_the_others_answer_over_the_same_replicas(addresses: dict[str, str]) -> None:
    for name, policy in policies(1, SHAPE).items():
        alone = name.startswith("homes")
        groups = [addresses] if alone else [{name: address} for name, address in addresses.items()]
        made = [fleet(group, SHAPE, 1) for group in groups]
        keepers = {name: keeper for name, (_, keeper, _) in zip(addresses, made, strict=False)}
        way = OneFleet(made[0][1]) if alone else Fleets(policy, keepers)
        for engine, *_ in made:
            await asyncio.to_thread(engine.start)
        seen = await closed_loop(way, SHAPE, 12, 0.2, 0.3, 1)
        assert seen.tokens == 8 * seen.asked > 0
        assert 0 < seen.at_hand < seen.asked
        for engine, keeper, placement in made:
            assert all(placement.used[name] <= SHAPE.memory * SIZE for name in placement.replicas)
            assert sum(placement.went.values()) > 0
            assert not +keeper._used
            await asyncio.to_thread(engine.close)


async def test_a_keeper_waits_while_all_adapters_are_in_use(addresses: dict[str, str]) -> None:
    engine, keeper, _ = fleet({"0": addresses["0"]}, replace(SHAPE, memory=1), 1)
    await asyncio.to_thread(engine.start)
    await keeper.hold("one")
    waits = asyncio.create_task(keeper.hold("two"))
    await asyncio.sleep(0.05)
    assert not waits.done()
    keeper.let_go("one")
    await asyncio.wait_for(waits, 5)
    assert keeper.has("two")
    assert not keeper.has("one")
    await asyncio.to_thread(engine.close)


@pytest.mark.long
async def test_by_processes_and_simulated_the_same_comes_out() -> None:
    args = argparse.Namespace(clients=160, warm=3.0, seconds=5.0, seed=1)
    shape, kind = Shape(prompt=1, answer=16), Kind(0.04, 0.0, 0.0, 0.05)
    policy = policies(1, shape)["round robin"]
    real = await fleet_processes.measure(policy, shape, kind, args)
    said = fleet_processes.simulated(policies(1, shape)["round robin"], shape, kind, args)
    assert real["tokens/s"] == pytest.approx(said["tokens/s"], rel=0.25)
    assert real["in memory"] == pytest.approx(said["in memory"], abs=0.1)
