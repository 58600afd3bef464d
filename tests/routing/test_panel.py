"""Lanes of all classifiers together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from router.classifiers.stand_in import StandInBase
from router.routing import BaseModel, Classifier
from router.routing.panel import Lanes, Lessons


async def test_nobody_waits_for_the_fit_of_one_that_asks_the_base(kit: Any) -> None:
    gate = threading.Event()

    class Slow(Classifier):
        name = "slow"

        def bind(self, base: BaseModel) -> None:
            """It asks the base."""

        def fit(self, adapters: Any) -> None:
            gate.wait(10)

    lanes = Lanes(lambda timeout: StandInBase())
    lanes.sync([kit.registered(Slow())], Lessons((kit.medical,), (kit.medical,)))
    async with asyncio.timeout(2):
        await lanes.wait_for_fits(10)
    (lane,) = lanes.in_order()
    assert not lane.ready
    gate.set()
    await kit.eventually(lambda: lane.ready)
    await lanes.close(5)


async def test_one_that_asks_the_base_learns_after_the_others(kit: Any) -> None:
    gate, order = threading.Event(), []

    class Encodes(Classifier):
        name = "encodes"

        def fit(self, adapters: Any) -> None:
            gate.wait(10)
            order.append(self.name)

    class Reads(Classifier):
        name = "reads"

        def bind(self, base: BaseModel) -> None:
            """It asks the base."""

        def fit(self, adapters: Any) -> None:
            order.append(self.name)

    lanes = Lanes(lambda timeout: StandInBase())
    lanes.sync(
        [kit.registered(Reads(), priority=1), kit.registered(Encodes(), priority=2)],
        Lessons((kit.medical,), (kit.medical,)),
    )
    await asyncio.sleep(0.05)
    assert order == []
    gate.set()
    async with asyncio.timeout(10):
        await lanes.wait_for_fits(10, with_base=True)
    assert order == ["encodes", "reads"]
    await lanes.close(5)


async def test_a_close_tells_a_fit_to_end_and_waits_for_it(kit: Any) -> None:
    told, ended = threading.Event(), threading.Event()

    class Long(Classifier):
        name = "long"

        def fit(self, adapters: Any) -> None:
            assert told.wait(10)
            ended.set()

        def close(self) -> None:
            told.set()

    lanes = Lanes()
    lanes.sync([kit.registered(Long())], Lessons((kit.medical,), (kit.medical,)))
    await asyncio.sleep(0.05)
    await lanes.close(5)
    assert ended.is_set()


async def test_a_fit_that_does_not_end_holds_nobody_up_for_long(kit: Any) -> None:
    gate = threading.Event()

    class Deaf(Classifier):
        name = "deaf"

        def fit(self, adapters: Any) -> None:
            gate.wait(10)

        def close(self) -> None:
            raise ValueError("deaf")

    lanes = Lanes()
    lanes.sync([kit.registered(Deaf())], Lessons((kit.medical,), (kit.medical,)))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await lanes.close(0.05)
    gate.set()
