"""Lanes of all classifiers together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from router.classifiers.stand_in import StandInBase
from router.routing import BaseModel, Classifier, Scores
from router.routing.knowledge import Labels
from router.routing.panel import Lanes, Lessons, Panel
from router.routing.policy import Policy


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


# -- classifiers for other languages


class Voice(Classifier):
    """For other languages."""

    name = "voice"
    foreign = True

    def __init__(self, lacking: str = "") -> None:
        self.lacking, self.learned, self.asked = lacking, 0, 0

    def lacks(self) -> str:
        return self.lacking

    def fit(self, adapters: Any) -> None:
        self.learned += 1

    def classify_batch(self, requests: Any) -> Any:
        self.asked += len(requests)
        return [Scores({"medical": 0.9})] * len(requests)


def panel_with(kit: Any, voice: Voice) -> tuple[Lanes, Panel]:
    lanes = Lanes()
    given = [kit.registered(voice, priority=1), kit.registered(kit.says("other", None), priority=2)]
    lanes.sync(given, Lessons((kit.medical,), (kit.medical,)))
    return lanes, Panel(lanes, foreign=lambda text: text == "hallo")


async def voted(kit: Any, panel: Panel, text: str) -> list[str]:
    request, labels = kit.asking(text), Labels((kit.medical,))
    everyone = [vote.classifier for vote in await panel.everyone(request, labels, Policy())]
    votes = await panel.until_settled(request, labels, {"medical"}, Policy())
    assert [vote.classifier for vote in votes] == everyone[: len(votes)]
    return everyone


async def test_one_for_other_languages_learns_with_the_first_such_request(kit: Any) -> None:
    voice = Voice()
    lanes, panel = panel_with(kit, voice)
    lane = lanes.in_order()[0]
    assert await voted(kit, panel, "hello") == ["other"]
    assert (voice.learned, voice.asked, lane.registration.health.state, lane.flaw) == (0, 0, "asleep", "")
    assert await voted(kit, panel, "hallo") == ["voice", "other"]
    assert (voice.learned, lane.registration.health.state) == (1, "ready")
    await lanes.close(5)


async def test_one_that_lacks_something_is_not_asked_and_that_is_no_flaw(kit: Any) -> None:
    lanes, panel = panel_with(kit, Voice("fetch its model"))
    lane = lanes.in_order()[0]
    assert await voted(kit, panel, "hallo") == ["other"]
    health = lane.registration.health
    assert (health.state, health.fit_error, lane.flaw) == ("unable", "fetch its model", "")
    await lanes.close(5)
