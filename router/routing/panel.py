"""All classifiers as a panel that votes on a request; their lanes follow what plugins register."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.classifiers.contract import Answer
from router.classifiers.registration import Registration
from router.routing.knowledge import Labels
from router.routing.lane import BaseFor, Lane
from router.routing.losses import LossLog
from router.routing.policy import FEW, Rule
from router.types import AdapterProfile, LostVote, Request, Vote, VoteError

OnVote = Callable[[Vote], None]
WAKING_SECONDS = 3.0  # for which the first request in another language waits for the classifiers of such


class Panel:
    """Asks lanes and reads their answers as votes for adapters. `on_vote` sees every vote, for metrics.

    `foreign` says whether a text is in another language than the examples of the adapters. Classifiers for
    such texts are asked for no others.
    """

    def __init__(
        self, lanes: Lanes, on_vote: OnVote | None = None, foreign: Callable[[str], bool] | None = None
    ) -> None:
        self._lanes, self._on_vote, self._foreign = lanes, on_vote, foreign
        self._losses = LossLog()

    def close(self) -> None:
        """Log the losses that were not logged yet."""
        self._losses.close()

    async def until_settled(
        self,
        request: Request,
        labels: Labels,
        candidates: Collection[str],
        rule: Rule,
        heard: dict[str, Vote] | None = None,
    ) -> list[Vote]:
        """Votes in order, up to the one that settles it; who does not count is not asked.

        `heard` are votes on this request that were asked for before, by classifier; new ones are added.
        """
        known = {} if heard is None else heard
        votes: list[Vote] = []
        for lane in await self._for_text(request, rule):
            if not rule.asks(lane.name):
                continue
            if lane.name not in known:
                known[lane.name] = await self._vote(lane, request, labels, counts=True)
            votes.append(known[lane.name])
            if rule.settled(votes, candidates):
                break
        return votes

    async def everyone(
        self, request: Request, labels: Labels, rule: Rule, heard: dict[str, Vote] | None = None
    ) -> list[Vote]:
        """All votes, asked at once, in the order in which they count; `heard` as above."""
        known, lanes = {} if heard is None else heard, await self._for_text(request, rule)
        new = [lane for lane in lanes if lane.name not in known]
        votes = await asyncio.gather(
            *(self._vote(lane, request, labels, rule.asks(lane.name)) for lane in new)
        )
        known.update((vote.classifier, vote) for vote in votes)
        return [known[lane.name] for lane in lanes]

    async def _for_text(self, request: Request, rule: Rule) -> list[Lane]:
        """Those to be asked for this text: classifiers for other languages only where it is in one."""
        lanes = self._lanes.in_order()
        others = [lane for lane in lanes if lane.registration.classifier.foreign]
        if not others:
            return lanes
        able = [lane for lane in others if rule.asks(lane.name) and not lane.unable]
        if not able or self._foreign is None or not self._foreign(request.text):
            return [lane for lane in lanes if lane not in others]
        seconds = WAKING_SECONDS
        if request.deadline is not None:
            seconds = max(0.0, min(seconds, request.deadline - time.monotonic()))
        ready = [lane for lane in able if await lane.wake(seconds)]
        return [lane for lane in lanes if lane in ready or lane not in others]

    def lost(self, votes: Sequence[Vote], candidates: Collection[str], rule: Rule) -> tuple[LostVote, ...]:
        """Of these votes those that `rule` needed for its conclusion and had to do without.

        A classifier that cannot work with this base's engine has no vote to lose.
        """
        if not any(vote.error for vote in votes):
            return ()
        unable = {lane.name for lane in self._lanes.in_order() if lane.unable}
        needed: list[Vote] = []
        for vote in votes:
            if rule.asks(vote.classifier):
                needed.append(vote)
                if rule.settled(needed, candidates):
                    break
        return tuple(
            LostVote(vote.classifier, vote.error)
            for vote in needed
            if vote.error and vote.classifier not in unable
        )

    async def _vote(self, lane: Lane, request: Request, labels: Labels, counts: bool) -> Vote:
        started = time.perf_counter()
        answer = await _in_time(lane.ask(request), request.deadline)
        vote = as_vote(lane.name, answer, labels, time.perf_counter() - started)
        if self._on_vote is not None:
            self._on_vote(vote)
        if vote.error and counts and not lane.unable:
            self._losses.note(LostVote(vote.classifier, vote.error))
        return vote


def as_vote(classifier: str, answer: Answer, labels: Labels, latency: float) -> Vote:
    """A classifier's answer as a vote for adapters; labels that nothing is called are invalid."""
    scores = labels.spread(answer.confidences)
    error, evidence = answer.error, answer.evidence
    if answer.confidences and not scores:
        label = next(iter(answer.confidences))
        error, evidence = VoteError.INVALID, f"no adapter, domain or task is called {label[:64]!r}"
    return Vote(classifier, scores, answer.declined, error, latency, evidence)


async def _in_time(answer: asyncio.Future[Answer], deadline: float | None) -> Answer:
    """The answer, or a timeout at the request's own deadline (monotonic seconds)."""
    if answer.done() or deadline is None:
        return await answer
    try:
        async with asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        return Answer(error=VoteError.TIMEOUT)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What classifiers learn: those that scale everything, the others some adapters only."""

    everything: tuple[AdapterProfile, ...]
    some: tuple[AdapterProfile, ...]

    def of(self, registration: Registration) -> tuple[AdapterProfile, ...]:
        """What this one learns."""
        classifier = registration.classifier
        few = classifier.foreign and len(self.everything) <= FEW
        return self.everything if classifier.scales or few else self.some


class Lanes:
    """One lane for each classifier, in the order in which they are asked."""

    def __init__(self, base_for: BaseFor | None = None, keep: Path | None = None) -> None:
        """`base_for` makes the base for one classifier; None: those that want it are not asked. Below the
        folder `keep` classifiers may keep what outlives the process."""
        self._base_for, self._keep = base_for, keep
        self._lanes: dict[str, Lane] = {}
        self._predecessors: dict[str, Lane] = {}
        self._order: tuple[str, ...] = ()

    def sync(
        self,
        registrations: Sequence[Registration],
        lessons: Lessons,
        asked: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Open lanes for new classifiers and close those of classifiers gone. Who is not `asked` now learns
        with the next `fit`: it would hold up the others.

        A reloaded classifier takes over when it is warmed up and fitted; until then its predecessor answers.
        """
        wanted = {r.name: r for r in registrations}
        for name in self._lanes.keys() - wanted.keys():
            self._lanes.pop(name).close()
            self._retire(name)
        for name, registration in wanted.items():
            lane = self._lanes.get(name)
            if lane is None or lane.registration is not registration:
                self._open(registration, lessons if asked(name) else None)
        self._order = tuple(r.name for r in registrations)

    def _open(self, registration: Registration, lessons: Lessons | None) -> None:
        before = self._lanes.get(registration.name)
        lane = Lane(registration, self._base_for, self._keep, others=self._running)
        self._lanes[registration.name] = lane
        if lessons is not None:
            lane.fit(lessons.of(registration))
        if before is not None and before.ready:
            self._retire(lane.name)
            self._predecessors[lane.name] = before
        elif before is not None:
            before.close()

    def _retire(self, name: str) -> None:
        if (old := self._predecessors.pop(name, None)) is not None:
            old.close()

    def in_order(self) -> list[Lane]:
        """Who is to be asked now."""
        return [self._current(name) for name in self._order]

    def _current(self, name: str) -> Lane:
        lane = self._lanes[name]
        if name in self._predecessors:
            if not lane.ready:
                return self._predecessors[name]
            self._retire(name)
        return lane

    async def fit(self, lessons: Lessons, wait: float) -> None:
        """Have all learn these adapters; returns when they have, or after `wait` seconds."""
        for lane in (*self._lanes.values(), *self._predecessors.values()):
            lane.fit(lessons.of(lane.registration))
        await self.wait_for_fits(wait)

    async def wait_for_fits(
        self, seconds: float, asked: Callable[[str], bool] = lambda name: True, with_base: bool = False
    ) -> None:
        """Wait at most so many seconds for fits in progress of classifiers that are `asked`, save those for
        other languages.

        `with_base`: also for those that ask the base, whose fits give way to all requests.
        """
        if running := self._running(asked, with_base):
            await asyncio.wait(running, timeout=seconds)

    def _running(
        self, asked: Callable[[str], bool] = lambda name: True, with_base: bool = False
    ) -> set[asyncio.Task[None]]:
        """Fits in progress, as `wait_for_fits` has it."""
        lanes = (
            lane
            for lane in self._lanes.values()
            if asked(lane.name)
            and (with_base or not lane.registration.wants_base)
            and not lane.registration.classifier.foreign
        )
        return {task for lane in lanes if (task := lane.fitter.running) is not None}

    async def close(self, wait: float) -> None:
        """Close all; fits have so many seconds to end. One that is in foreign code when the process ends may
        end it badly."""
        lanes = (*self._lanes.values(), *self._predecessors.values())
        for lane in lanes:
            lane.close()
        self._lanes, self._predecessors, self._order = {}, {}, ()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        for lane in lanes:
            left = until - loop.time()
            if left > 0 and not lane.fitter.idle.is_set():
                await asyncio.to_thread(lane.fitter.idle.wait, left)
