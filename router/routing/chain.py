"""The adapters as routing knows them, and the chain of classifiers that votes for them.

`CatalogView` follows the adapters: those there now, those that classifiers learned, and what labels mean.
`ClassifierChain` asks executors, which follow what plugins register.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from router.classifiers.contract import ClassifierAnswer, Registration
from router.classifiers.texts import languages_of
from router.errors import NotFound
from router.ports import Catalog
from router.reread import problem_of
from router.routing.executor import BaseFor, ClassifierExecutor
from router.routing.policy import Rule
from router.types import AdapterProfile, LostVote, Request, RoutingHints, Visible, Vote, VoteError

log = logging.getLogger(__name__)
DEBOUNCE_SECONDS = 0.05
AGAIN_SECONDS = 1.0  # from an exception while learning to the next attempt
MOST_KEPT = 64  # sets of candidates, one for each kind of caller and hint
MOST_READ, OF_EACH = 2000, 20  # examples of which the languages are looked at: of all adapters, of one
MOST_NAMED = 20  # domains or tasks in an error
Learn = Callable[[tuple[AdapterProfile, ...]], Awaitable[None]]


class CatalogView:
    """Follows a catalog. `learn` is awaited for each new set, one at a time, before `labels` speak of it."""

    def __init__(self, catalog: Catalog, learn: Learn) -> None:
        self._catalog, self._learn = catalog, learn
        self.present: tuple[AdapterProfile, ...] = ()
        self.learned: tuple[AdapterProfile, ...] = ()
        self.labels = Labels(())
        self.flaw = ""  # why the present set could not be learned; empty if it was
        self._task: asyncio.Task[None] | None = None
        self._left: dict[tuple[Visible, str, str], frozenset[str]] = {}
        self._languages: tuple[object, frozenset[str]] = ((), frozenset())

    def start(self) -> None:
        """Take the present set as learned, then follow."""
        self._catalog.subscribe(self._changed)
        self.present = self.learned = self._catalog.profiles()
        self.labels = Labels(self.present)

    def _changed(self) -> None:
        present = self._catalog.profiles()
        if present == self.present:
            return
        self.present, self._left = present, {}
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="routing learns adapters")

    async def _follow(self) -> None:
        await asyncio.sleep(DEBOUNCE_SECONDS)
        while self.learned != self.present:
            try:
                await self._catch_up()
            except Exception as error:  # of any kind: else no change of adapters would be learned again
                if not self.flaw:
                    log.exception("adapters could not be learned; routing goes on with those from before")
                self.flaw = f"adapters that came or changed could not be learned: {problem_of(error)}"
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.flaw = ""

    async def _catch_up(self) -> None:
        target = self.present
        await self._learn(target)
        self.learned, self.labels = target, Labels(target)
        log.info("routing knows %d adapters", len(target))

    def candidates(self, hints: RoutingHints, visible: Visible) -> frozenset[str]:
        """Names of the adapters that a caller sees and hints leave. Raises what `narrow` does."""
        key = visible, hints.domain, hints.task
        if (known := self._left.get(key)) is not None:
            return known
        all_of_them = visible.everything
        there = self.present if all_of_them else tuple(p for p in self.present if p.name in visible)
        found = frozenset(profile.name for profile in narrow(there, hints))
        if len(self._left) >= MOST_KEPT:
            self._left.clear()
        self._left[key] = found
        return found

    def needing_passage(self) -> frozenset[str]:
        """Names of the adapters that answer from a passage."""
        return frozenset(profile.name for profile in self.present if profile.needs_passage)

    @property
    def languages(self) -> frozenset[str]:
        """Of the examples of the adapters that were learned."""
        if self._languages[0] is not self.learned:
            self._languages = self.learned, languages_of_examples(self.learned)
        return self._languages[1]

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()


def languages_of_examples(profiles: Iterable[AdapterProfile]) -> frozenset[str]:
    """The languages that a good share of the adapters' examples are in."""
    texts = (text for profile in profiles for text in profile.examples[:OF_EACH])
    return languages_of(islice(texts, MOST_READ))


def narrow(profiles: Sequence[AdapterProfile], hints: RoutingHints) -> tuple[AdapterProfile, ...]:
    """The profiles that fit the hints; all of them if there is no hint.

    Those that match every hint come first; where there are none, those that match one hint and leave
    the other axis open (a translator of no domain serves domain "legal", task "translation"). Raises
    NotFound, saying which domains or tasks there are.
    """
    wanted = [(axis, value) for axis, value in (("domain", hints.domain), ("task", hints.task)) if value]
    for axis, value in wanted:
        have = sorted({getattr(p, axis) for p in profiles} - {""})
        if value not in have:
            more = f" and {len(have) - MOST_NAMED} more" if len(have) > MOST_NAMED else ""
            there = (", ".join(have[:MOST_NAMED]) or "none") + more
            raise NotFound(axis, value, f": no adapter that may be routed to has it; there are {there}")
    exact = tuple(p for p in profiles if all(getattr(p, axis) == value for axis, value in wanted))
    if exact:
        return exact
    open_ended = tuple(p for p in profiles if all(getattr(p, axis) in (value, "") for axis, value in wanted))
    near = tuple(p for p in open_ended if any(getattr(p, axis) == value for axis, value in wanted))
    if not near and wanted:
        both = f"domain {hints.domain}, task {hints.task}"
        raise NotFound("adapter", both, ": no adapter that may be routed to has both")
    return near


class Labels:
    """What a label stands for. A name wins over a domain, a domain over a task of the same text."""

    def __init__(self, profiles: Iterable[AdapterProfile]) -> None:
        self._names: set[str] = set()
        domains: dict[str, list[str]] = {}
        tasks: dict[str, list[str]] = {}
        for profile in profiles:
            self._names.add(profile.name)
            domains.setdefault(profile.domain, []).append(profile.name)
            tasks.setdefault(profile.task, []).append(profile.name)
        self._axes: Mapping[str, Sequence[str]] = {**tasks, **domains, "": []}

    def _adapters(self, label: str) -> Sequence[str]:
        return (label,) if label in self._names else self._axes.get(label, ())

    def spread(self, confidences: Mapping[str, float]) -> dict[str, float]:
        """Confidence of each adapter: its own label's if there is one, else the best of those it falls under.

        Labels that stand for no adapter are left out.
        """
        spread: dict[str, float] = {}
        for label, confidence in confidences.items():
            for adapter in self._adapters(label):
                if label == adapter or adapter not in confidences:
                    spread[adapter] = max(confidence, spread.get(adapter, 0.0))
        return spread


# -- the classifiers that vote

OnVote = Callable[[Vote], None]


class ClassifierChain:
    """Asks executors and reads their answers as votes for adapters. `on_vote` sees every vote, for metrics.

    `foreign` says whether a text is in another language than the examples of the adapters. Classifiers for
    such texts are asked for no others.
    """

    def __init__(
        self,
        executors: Executors,
        foreign: Callable[[str], bool] | None = None,
    ) -> None:
        self._executors, self._foreign = executors, foreign
        self.on_vote: OnVote | None = None
        self._losses = LostVoteLog()

    def close(self) -> None:
        """Log the losses that were not logged yet."""
        self._losses.close()

    async def until_settled(
        self,
        request: Request,
        labels: Labels,
        candidates: Collection[str],
        rule: Rule,
        votes_before: dict[str, Vote] | None = None,
    ) -> list[Vote]:
        """Votes in order, up to the one that settles it.

        `votes_before` are earlier votes on this request by classifier; new ones are added.
        """
        known = {} if votes_before is None else votes_before
        votes: list[Vote] = []
        for executor in await self._for_text(request):
            if executor.name not in known:
                known[executor.name] = await self._vote(executor, request, labels)
            votes.append(known[executor.name])
            if rule.settled(votes, candidates):
                break
        return votes

    async def everyone(
        self, request: Request, labels: Labels, votes_before: dict[str, Vote] | None = None
    ) -> list[Vote]:
        """All votes, asked at once, in the order in which they count; `votes_before` as above."""
        known, executors = {} if votes_before is None else votes_before, await self._for_text(request)
        new = [executor for executor in executors if executor.name not in known]
        votes = await asyncio.gather(*(self._vote(executor, request, labels) for executor in new))
        known.update((vote.classifier, vote) for vote in votes)
        return [known[executor.name] for executor in executors]

    async def _for_text(self, request: Request) -> list[ClassifierExecutor]:
        """Those to be asked for this text: classifiers for other languages only where it is in one."""
        executors = self._executors.in_order()
        others = [executor for executor in executors if executor.registration.classifier.foreign]
        if not others:
            return executors
        able = [executor for executor in others if not executor.unable]
        if not able or self._foreign is None or not self._foreign(request.text):
            return [executor for executor in executors if executor not in others]
        left = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
        ready = [executor for executor in able if await executor.wake(left)]
        return [executor for executor in executors if executor in ready or executor not in others]

    def lost(self, votes: Sequence[Vote], candidates: Collection[str], rule: Rule) -> tuple[LostVote, ...]:
        """Of these votes those that `rule` needed for its conclusion and had to do without.

        A classifier that cannot work with this base's engine has no vote to lose.
        """
        if not any(vote.error for vote in votes):
            return ()
        unable = {executor.name for executor in self._executors.in_order() if executor.unable}
        needed: list[Vote] = []
        for vote in votes:
            needed.append(vote)
            if rule.settled(needed, candidates):
                break
        return tuple(
            LostVote(vote.classifier, vote.error)
            for vote in needed
            if vote.error and vote.classifier not in unable
        )

    async def _vote(self, executor: ClassifierExecutor, request: Request, labels: Labels) -> Vote:
        started = time.perf_counter()
        answer = await _in_time(executor.classify(request), request.deadline)
        vote = as_vote(executor.name, answer, labels, time.perf_counter() - started)
        if self.on_vote is not None:
            self.on_vote(vote)
        if vote.error and not executor.unable:
            self._losses.note(LostVote(vote.classifier, vote.error))
        return vote


def as_vote(classifier: str, answer: ClassifierAnswer, labels: Labels, latency: float) -> Vote:
    """A classifier's answer as a vote for adapters; labels that nothing is called are invalid."""
    scores = labels.spread(answer.confidences)
    error, evidence = answer.error, answer.evidence
    if answer.confidences and not scores:
        label = next(iter(answer.confidences))
        error, evidence = VoteError.INVALID, f"no adapter, domain or task is called {label[:64]!r}"
    return Vote(classifier, scores, answer.declined, error, latency, evidence)


async def _in_time(answer: asyncio.Future[ClassifierAnswer], deadline: float | None) -> ClassifierAnswer:
    """The answer, or a timeout at the request's own deadline (monotonic seconds)."""
    if answer.done() or deadline is None:
        return await answer
    try:
        async with asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        return ClassifierAnswer(error=VoteError.TIMEOUT)


class Executors:
    """One executor for each classifier, in call order."""

    def __init__(self, base_for: BaseFor | None = None, keep: Path | None = None) -> None:
        """`base_for` makes the base for one classifier. Without it, classifiers that need the base get no
        requests. Below the
        folder `keep` classifiers may keep what outlives the process."""
        self._base_for, self._keep = base_for, keep
        self._executors: dict[str, ClassifierExecutor] = {}
        self._predecessors: dict[str, ClassifierExecutor] = {}
        self._order: tuple[str, ...] = ()

    def sync(self, registrations: Sequence[Registration], profiles: Sequence[AdapterProfile]) -> None:
        """Open executors for new classifiers, close those of removed ones.

        A reloaded classifier takes over when it is warmed up and fitted; until then its predecessor answers.
        """
        wanted = {r.name: r for r in registrations}
        for name in self._executors.keys() - wanted.keys():
            self._executors.pop(name).close()
            self._retire(name)
        for name, registration in wanted.items():
            executor = self._executors.get(name)
            if executor is None or executor.registration is not registration:
                self._open(registration, profiles)
        self._order = tuple(r.name for r in registrations)

    def _open(self, registration: Registration, profiles: Sequence[AdapterProfile]) -> None:
        before = self._executors.get(registration.name)
        executor = ClassifierExecutor(registration, self._base_for, self._keep, others=self._running)
        self._executors[registration.name] = executor
        executor.fit(profiles)
        if before is not None and before.ready:
            self._retire(executor.name)
            self._predecessors[executor.name] = before
        elif before is not None:
            before.close()

    def _retire(self, name: str) -> None:
        if (old := self._predecessors.pop(name, None)) is not None:
            old.close()

    def in_order(self) -> list[ClassifierExecutor]:
        """The executors that get requests now."""
        return [self._current(name) for name in self._order]

    def _current(self, name: str) -> ClassifierExecutor:
        executor = self._executors[name]
        if name in self._predecessors:
            if not executor.ready:
                return self._predecessors[name]
            self._retire(name)
        return executor

    async def fit(self, profiles: Sequence[AdapterProfile], wait: float) -> None:
        """Have all learn these adapters; returns when they have, or after `wait` seconds."""
        for executor in (*self._executors.values(), *self._predecessors.values()):
            executor.fit(profiles)
        await self.wait_for_fits(wait)

    async def wait_for_fits(self, seconds: float, with_base: bool = False) -> None:
        """Wait at most so many seconds for fits in progress, save those of classifiers for other languages.

        `with_base`: also for those that ask the base, whose fits give way to all requests.
        """
        if running := self._running(with_base):
            await asyncio.wait(running, timeout=seconds)

    def _running(self, with_base: bool = False) -> set[asyncio.Task[None]]:
        """Fits in progress, as `wait_for_fits` has it."""
        executors = (
            executor
            for executor in self._executors.values()
            if (with_base or not executor.registration.wants_base)
            and not executor.registration.classifier.foreign
        )
        return {task for executor in executors if (task := executor.fitter.running) is not None}

    async def close(self, wait: float) -> None:
        """Close all; fits have so many seconds to end. One that is in foreign code when the process ends may
        end it badly."""
        executors = (*self._executors.values(), *self._predecessors.values())
        for executor in executors:
            executor.close()
        self._executors, self._predecessors, self._order = {}, {}, ()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        for executor in executors:
            left = until - loop.time()
            if left > 0 and not executor.fitter.idle.is_set():
                await asyncio.to_thread(executor.fitter.idle.wait, left)


# -- lost votes in the log: one line for each classifier and minute, with how many and why

LOG_SECONDS = 60.0  # between two lines about one classifier


class LostVoteLog:
    """Lives on one event loop. A first loss is logged at once, those of the next `seconds` together."""

    def __init__(self, seconds: float = LOG_SECONDS) -> None:
        self._seconds = seconds
        self._counts: dict[str, Counter[str]] = {}  # since the last line, of classifiers with a timer
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def waiting(self) -> bool:
        """Whether a line was written less than `seconds` ago."""
        return bool(self._timers)

    def note(self, lost: LostVote) -> None:
        """Count a lost vote."""
        if lost.classifier in self._timers:
            self._counts[lost.classifier][lost.reason.value] += 1
        else:
            self._begin(lost.classifier, Counter([lost.reason.value]))

    def _begin(self, classifier: str, counts: Counter[str]) -> None:
        _write(classifier, counts)
        self._counts[classifier] = Counter()
        loop = asyncio.get_running_loop()
        self._timers[classifier] = loop.call_later(self._seconds, self._passed, classifier)

    def _passed(self, classifier: str) -> None:
        del self._timers[classifier]
        if counts := self._counts.pop(classifier):
            self._begin(classifier, counts)

    def close(self) -> None:
        """Log what was counted since the last lines."""
        for classifier, timer in self._timers.items():
            timer.cancel()
            if counts := self._counts.pop(classifier):
                _write(classifier, counts)
        self._timers.clear()


def _write(classifier: str, counts: Counter[str]) -> None:
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    log.warning("votes of classifier %s were lost: %s", classifier, reasons)
