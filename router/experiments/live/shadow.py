"""Shadow arms: the same request answered a second time, unseen, and compared with what the user saw.

A shadow takes only what the engine has to spare; one that was dropped is counted, and there is no pair then.
Nothing of it is an exposure: nobody saw it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from router.experiments.assignment import fraction
from router.experiments.judges import Case, Heard
from router.experiments.live.runtime import Experiments
from router.experiments.live.snapshot import BASE, Running
from router.experiments.live.tasks import leave
from router.experiments.live.watch import End, Served, Watcher
from router.experiments.model import ArmSpec, Pair
from router.types import Decision, Request, Usage

log = logging.getLogger(__name__)
JUDGED, DECLINED, UNJUDGED, UNSERVED, FAILED = "judged", "declined", "unjudged", "unserved", "failed"
OTHER_VERSION = "other_version"


@dataclass(frozen=True, slots=True)
class Answered:
    """A shadow's whole answer."""

    text: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """Why there is none: load (room was needed), cold (its version is not in memory), deadline, failed."""

    why: str


class Understudy(Protocol):
    """Answers in the background."""

    async def answer(self, request: Request, decision: Decision) -> Answered | NotAnswered:
        """The request as `decision` would have it answered; never raises for a fault of the answer."""
        ...


AskJudge = Callable[[str, Case], Awaitable[Heard]]


class Shadows:
    """One of `Experiments.beside`: starts the shadows of an answer that the engine has taken."""

    def __init__(self, live: Experiments, understudy: Understudy, judge: AskJudge) -> None:
        self._live, self._understudy, self._judge = live, understudy, judge
        self._tasks: set[asyncio.Task[str]] = set()

    def __call__(self, served: Served) -> Watcher | None:
        """The watcher that waits for the served answer; None if the request has no shadow."""
        pairs = list(self._wanted(served))
        if not pairs:
            return None
        watcher = _Ending()
        for one, arm in pairs:
            task = asyncio.create_task(self._pair(served, one, arm, watcher.end), name=f"shadow {one.name}")
            self._tasks.add(task)
            watcher.tasks.append(task)
            task.add_done_callback(partial(self._done, (one.name, arm.name)))
        return watcher

    async def close(self) -> None:
        """Drop all."""
        await leave(self._tasks)

    def _wanted(self, served: Served) -> Iterator[tuple[Running, ArmSpec]]:
        shadows = self._live.assigner.snapshot.shadows
        if not shadows or not self._live.availability.up or "/versions/" in served.request.routing.adapter:
            return
        for one in shadows.get(_route(served), ()):
            place = fraction(one.allocation.salts.variant, served.request.request_id)
            if place >= one.spec.shadow_share:
                continue
            arms = [arm for arm in one.arms.values() if arm.name != one.spec.control]
            if served.degraded or served.decision.adapter != one.control.adapter:
                self._not_controls(one, arms, served)
                continue
            yield from ((one, arm) for arm in arms)

    def _not_controls(self, one: Running, arms: list[ArmSpec], served: Served) -> None:
        """What was served is not control's: there is nothing to compare with."""
        for arm in arms:
            self._live.counts.shadows[one.name, arm.name, OTHER_VERSION] += 1
        if served.assignment is None and not served.degraded:
            text = (
                f"requests are answered by {served.decision.adapter or BASE}, and control is "
                f"{one.control.adapter or BASE}: shadows are compared with control's answers only, so make "
                "that the default version"
            )
            self._live.assigner.suspect(one.name, text)

    async def _pair(self, served: Served, one: Running, arm: ArmSpec, end: asyncio.Future[End]) -> str:
        """Answer, wait for the served answer, have both judged; what came of it."""
        decision = replace(
            served.decision,
            adapter=arm.adapter,
            digest="",
            domain="",
            task="",
            experiment=one.name,
            arm=arm.name,
        )
        answer = await self._understudy.answer(served.request, decision)
        if isinstance(answer, NotAnswered):
            return answer.why
        shown = await end
        heard = await self._judge(one.spec.judge, Case(served.request, shown.text, answer.text))
        if heard.judgement is None:
            return UNJUDGED if heard.error else DECLINED
        numbers = {
            **heard.judgement.numbers,
            "served_tokens": float(shown.usage.completion_tokens),
            "shadow_tokens": float(answer.usage.completion_tokens),
            "served_seconds": shown.usage.total_time,
            "shadow_seconds": answer.usage.total_time,
        }
        response, result = served.request.request_id, heard.judgement.result
        pair = Pair(one.name, one.phase, arm.name, response, time.time(), result, numbers)
        self._live.recorder.pairs((pair,))
        return JUDGED

    def _done(self, arm: tuple[str, str], task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            result = UNSERVED
        elif (error := task.exception()) is not None:
            log.error("a shadow of experiment %s failed", arm[0], exc_info=error)
            result = FAILED
        else:
            result = task.result()
        self._live.counts.shadows[*arm, result] += 1


class _Ending:
    """Waits for the served answer; without one the shadows are dropped."""

    def __init__(self) -> None:
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.tasks: list[asyncio.Task[str]] = []

    def began(self) -> None:
        """The shadow has begun by itself."""

    def ended(self, end: End) -> None:
        """The answer that the user saw, whole or not at all."""
        if end.reason is not None:
            self.end.set_result(end)
            return
        for task in self.tasks:
            task.cancel()


def _route(served: Served) -> str:
    """The route before an experiment's arm took its place."""
    if served.assignment is not None and not served.assignment.running.by_router:
        return served.assignment.running.spec.route
    return served.decision.adapter.name if served.decision.adapter else BASE
