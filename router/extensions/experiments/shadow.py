"""Shadow arms: the same request answered a second time, unseen, and logged beside what the user saw.

A shadow takes only what the engine has to spare; one that was dropped is counted, and there is no pair
then. Nothing of it is an exposure: nobody saw it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from router.engine.base import Delta, EngineStatus, Finished
from router.errors import DeadlineExceeded, Overloaded, RouterError
from router.extensions.experiments.assignment import RunningExperiment
from router.extensions.experiments.model import BASE, ArmSpec
from router.extensions.experiments.runtime import LiveExperiments, leave_tasks, route_of
from router.ports import AdapterRegistry, End, Served, Watcher
from router.types import AdapterRef, AdapterState, Decision, FinishReason, Request, Usage
from router.units import fraction

log = logging.getLogger(__name__)
SAME, DIFFERENT, UNSERVED = "same", "different", "unserved"
LOAD, COLD, DEADLINE, FAILED = "load", "cold", "deadline", "failed"
OTHER_VERSION = "other_version"
Complete = Callable[[Request, Decision], AsyncGenerator[Delta | Finished, None]]


@dataclass(frozen=True, slots=True)
class CompletedShadow:
    """A shadow's whole answer."""

    text: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class DroppedShadow:
    """Why there is none: load (room was needed), cold (its version is not in memory), deadline, failed."""

    why: str


class Shadows:
    """The shadows of a server: one starts when the engine has taken the request of the user."""

    def __init__(self, live: LiveExperiments, answers: ShadowAnswers) -> None:
        self._live, self._answers = live, answers
        self._tasks: set[asyncio.Task[str]] = set()

    def beside(self, served: Served) -> Watcher | None:
        """The watcher that waits for the served answer; None if the request has no shadow."""
        pairs = list(self._wanted(served))
        if not pairs:
            return None
        watcher = _AwaitedEnd()
        for one, arm in pairs:
            task = asyncio.create_task(self._pair(served, one, arm, watcher.end), name=f"shadow {one.name}")
            self._tasks.add(task)
            watcher.tasks.append(task)
            task.add_done_callback(partial(self._done, (one.name, arm.name)))
        return watcher

    async def close(self) -> None:
        """Drop all."""
        await leave_tasks(self._tasks)

    def _wanted(self, served: Served) -> Iterator[tuple[RunningExperiment, ArmSpec]]:
        shadows = self._live.assigner.snapshot.shadows
        if not shadows or not self._live.availability.up or "/versions/" in served.request.routing.adapter:
            return
        for one in shadows.get(route_of(served), ()):
            place = fraction(one.allocation.salts.variant, served.request.request_id)
            if place >= one.spec.shadow_share:
                continue
            arms = [arm for arm in one.arms.values() if arm.name != one.spec.control]
            if served.degraded or served.decision.adapter != one.control.adapter:
                self._not_controls(one, arms, served)
                continue
            yield from ((one, arm) for arm in arms)

    def _not_controls(self, one: RunningExperiment, arms: list[ArmSpec], served: Served) -> None:
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

    async def _pair(
        self, served: Served, one: RunningExperiment, arm: ArmSpec, end: asyncio.Future[End]
    ) -> str:
        """Answer, wait for the served answer, log the pair; what came of it."""
        decision = replace(
            served.decision,
            adapter=arm.adapter,
            digest="",
            domain="",
            task="",
            experiment=one.name,
            arm=arm.name,
        )
        answer = await self._answers.answer(served.request, decision)
        if isinstance(answer, DroppedShadow):
            return answer.why
        shown, request = await end, served.request
        same = answer.text.strip() == shown.text.strip()
        pair = {
            "experiment": one.name,
            "phase": one.phase,
            "arm": arm.name,
            "response_id": request.request_id,
            "same": same,
            "served_tokens": shown.usage.completion_tokens,
            "shadow_tokens": answer.usage.completion_tokens,
            "served_seconds": shown.usage.total_time,
            "shadow_seconds": answer.usage.total_time,
        }
        log.info("shadow answer", extra={"fields": pair})
        return SAME if same else DIFFERENT

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


class _AwaitedEnd:
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


class ShadowAnswers:
    """`complete` is the pipeline's; `status` the engine's.

    A version that is not in memory is not brought in for a shadow: it could cost a user's adapter its place.
    """

    def __init__(
        self, complete: Complete, registry: AdapterRegistry, status: Callable[[], EngineStatus]
    ) -> None:
        self._complete, self._registry, self._status = complete, registry, status

    async def answer(self, request: Request, decision: Decision) -> CompletedShadow | DroppedShadow:
        """The whole answer, or why there is none."""
        status = self._status()
        if status.running and status.waiting > 1:  # one may be the request itself, on its way in
            return DroppedShadow(LOAD)
        try:
            if not self._resident(decision.adapter):
                return DroppedShadow(COLD)
            sent = replace(request, sampling=replace(request.sampling, logprobs=None))
            return await self._answer(sent, decision)
        except Overloaded:
            return DroppedShadow(LOAD)
        except DeadlineExceeded:
            return DroppedShadow(DEADLINE)
        except RouterError as error:
            log.debug("a shadow of %s was not answered: %s", decision.adapter, error.message)
            return DroppedShadow(FAILED)

    def _resident(self, ref: AdapterRef | None) -> bool:
        return ref is None or self._registry.get(ref.name, ref.version).state is AdapterState.READY

    async def _answer(self, request: Request, decision: Decision) -> CompletedShadow | DroppedShadow:
        texts: list[str] = []
        async with aclosing(self._complete(request, decision)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    texts.append(event.text)
                elif event.reason in (FinishReason.STOP, FinishReason.LENGTH):
                    return CompletedShadow("".join(texts), event.usage)
                elif event.reason is FinishReason.DEADLINE:
                    return DroppedShadow(DEADLINE)
                else:
                    return DroppedShadow(LOAD if event.reason is FinishReason.CANCELLED else FAILED)
        return DroppedShadow(FAILED)
