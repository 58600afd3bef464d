"""Warm-up and fit: off the loop, never two at once, the last good one stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from router.classifiers.stand_in import StandInBase
from router.routing import Classifier, Scores
from router.routing.lane import Fitter
from router.routing.panel import Lanes
from router.types import AdapterProfile


class Learner(Classifier):
    name = "learner"

    def __init__(self) -> None:
        self.known: tuple[str, ...] = ()
        self.fits: list[tuple[str, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.fail: BaseException | None = None
        self.warm = 0

    def warmup(self) -> None:
        self.warm += 1

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.threads.add(threading.get_ident())
        self.gate.wait(5)
        if self.fail:
            raise self.fail
        self.known = tuple(a.name for a in adapters)
        self.fits.append(self.known)

    def classify_batch(self, requests: Any) -> list[Scores | None]:
        return [Scores(dict.fromkeys(self.known, 1.0)) if self.known else None for _ in requests]


async def fitted(fitter: Fitter) -> None:
    while (task := fitter.running) is not None:
        await task


async def test_a_classifier_that_learns_nothing_is_ready_at_once(kit: Any) -> None:
    assert Fitter(kit.registered(kit.says("c"))).ready


async def test_it_is_not_asked_before_its_first_fit(kit: Any, lane_of: Any) -> None:
    learner = Learner()
    lane = lane_of(kit.registered(learner))
    assert lane.ask(kit.asking()).result().error == "not-ready"
    lane.fit([kit.medical])
    await fitted(lane.fitter)
    assert (await lane.ask(kit.asking())).confidences == {"medical": 1.0}
    assert threading.get_ident() not in learner.threads


async def test_requests_go_on_with_the_old_fit_during_a_slow_one(kit: Any, lane_of: Any) -> None:
    learner = Learner()
    lane = lane_of(kit.registered(learner))
    lane.fit([kit.medical])
    await fitted(lane.fitter)
    learner.gate.clear()
    lane.fit([kit.legal])
    assert (await lane.ask(kit.asking())).confidences == {"medical": 1.0}
    learner.gate.set()
    await fitted(lane.fitter)
    assert (await lane.ask(kit.asking())).confidences == {"legal": 1.0}
    assert learner.warm == 1


async def test_only_the_newest_set_is_fitted_after_the_one_in_progress(kit: Any) -> None:
    learner = Learner()
    learner.gate.clear()
    fitter = Fitter(kit.registered(learner))
    fitter.want([kit.medical])
    await asyncio.sleep(0.02)
    fitter.want([kit.legal])
    fitter.want([kit.translation])
    learner.gate.set()
    await fitted(fitter)
    fitter.want([kit.translation])
    await fitted(fitter)
    assert learner.fits == [("medical",), ("translation",)]


async def test_a_failed_fit_is_a_status_and_leaves_the_last_one(kit: Any, lane_of: Any) -> None:
    learner = Learner()
    registration = kit.registered(learner)
    lane = lane_of(registration)
    learner.fail = SystemExit("no encoder")
    lane.fit([kit.medical])
    await fitted(lane.fitter)
    assert (registration.health.state, lane.ready) == ("failed", False)
    assert "no encoder" in registration.health.fit_error
    learner.fail = None
    lane.fit([kit.medical])  # the same set again is tried again
    await fitted(lane.fitter)
    assert (registration.health.state, registration.health.fit_error) == ("ready", "")
    learner.fail = ValueError("worse")
    lane.fit([kit.legal])
    await fitted(lane.fitter)
    assert "worse" in registration.health.fit_error
    assert (await lane.ask(kit.asking())).confidences == {"medical": 1.0}
    learner.fail = None
    lane.fit([kit.legal])
    await fitted(lane.fitter)
    assert (await lane.ask(kit.asking())).confidences == {"legal": 1.0}


async def test_a_fit_that_raises_cancellation_is_only_a_fault(kit: Any) -> None:
    learner = Learner()
    learner.fail = asyncio.CancelledError()
    registration = kit.registered(learner)
    fitter = Fitter(registration)
    fitter.want([kit.medical])
    await fitted(fitter)
    assert registration.health.state == "failed"


class Bound(Classifier):
    """Learns from the base and answers with what it learned."""

    name = "bound"

    def __init__(self) -> None:
        self.base: Any = None
        self.fits = 0

    def bind(self, base: Any) -> None:
        assert self.base is None
        self.base = base

    def fit(self, adapters: Any) -> None:
        self.fits += 1
        self.base.hidden([a.name for a in adapters], background=True)

    def classify_batch(self, requests: Any) -> Any:
        return [Scores({"medical": 1.0}) for _ in requests]


async def test_a_classifier_gets_the_base_with_its_own_timeout(kit: Any, lane_of: Any) -> None:
    timeouts: list[float] = []

    def base_for(timeout: float) -> Any:
        timeouts.append(timeout)
        return StandInBase()

    classifier = Bound()
    lane = lane_of(kit.registered(classifier, timeout=1.5), base_for=base_for)
    assert lane.ask(kit.asking()).result().error == "not-ready"
    for profiles in ([kit.medical], [kit.medical, kit.legal]):
        lane.fit(profiles)
        await kit.eventually(lambda: lane.ready and lane.fitter.running is None)
    assert (timeouts, classifier.fits) == ([1.5], 2)
    assert (await lane.ask(kit.asking())).confidences == {"medical": 1.0}


async def test_without_a_base_it_is_not_asked_and_says_why(kit: Any, lane_of: Any) -> None:
    registration = kit.registered(Bound())
    lane = lane_of(registration)
    lane.fit([kit.medical])
    assert lane.ask(kit.asking()).result().error == "not-ready"
    assert registration.status().state == "failed"
    assert "no engine" in registration.status().fit_error


async def test_nobody_waits_for_the_fit_of_one_that_asks_the_base(kit: Any) -> None:
    gate = threading.Event()

    class Slow(Bound):
        def fit(self, adapters: Any) -> None:
            gate.wait(10)

    lanes = Lanes(lambda timeout: StandInBase())
    lanes.sync([kit.registered(Slow())], [kit.medical])
    async with asyncio.timeout(2):
        await lanes.wait_for_fits(10)
    (lane,) = lanes.in_order()
    assert not lane.ready
    gate.set()
    await kit.eventually(lambda: lane.ready)
    lanes.close()
