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
    lanes.close()
