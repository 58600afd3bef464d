"""Replicas that this edge starts and ends: how many there are, and new ones in the place of old ones.

No clock of its own, no network: the edge reports what it sees, and follows the fleet plan that it gets.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from router.errors import NotFound
from router.replicas.membership import (
    MOST,
    FleetPlan,
    Member,
    MemberLoad,
    Replacement,
    Report,
    Step,
    check_bounds,
)

log = logging.getLogger(__name__)

START_SECONDS = 900.0  # in which one must come up that is not needed for the least number
STARTS = 3  # that may fail, likewise


@dataclass(frozen=True, slots=True)
class Rules:
    """What is full, what is roomy, and for how long it has to be so. Shares are of all rows."""

    full: float = 0.85  # rows that run or wait: one more is needed
    waits: float = 0.25  # jobs that wait though rows may be free: for memory, or for an adapter
    roomy: float = 0.6  # of the rows that one fewer would have
    memory: float = 5.0  # seconds after which a change of load has been seen to 63 %
    up_seconds: float = 5.0
    down_seconds: float = 180.0
    pause: float = 60.0  # after a start that failed; twice as long after each further one
    longest_pause: float = 900.0


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of all edges, running and waiting, and the rows of a replica."""

    running: int
    waiting: int
    rows: int


@dataclass(slots=True)
class Mean:
    """A mean over time of what was there when one looked, beginning with nothing."""

    memory: float
    value: float = 0.0
    at: float = math.inf

    def look(self, now: float, there: float) -> float:
        """The mean now."""
        kept = math.exp(min(0.0, self.at - now) / self.memory)
        self.value, self.at = there + (self.value - there) * kept, now
        return self.value


class Scaler:
    """How many replicas a load asks for; asked every second or so. Times are seconds of one clock.

    Up when what runs and waits has nearly filled the places for some seconds; down, minutes later, when one
    fewer would still have room. Between the two lies a band in which nothing happens, so a steady load is
    never answered by both, and one that swings faster than `down_seconds` keeps what its peaks need.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._demand, self._waiting = Mean(self._rules.memory), Mean(self._rules.memory)
        self._full_since = self._roomy_since = math.inf
        self._failures, self._not_before = 0, -math.inf

    def look(
        self, now: float, size: int, load: Load, least: int, most: int, *, starting: bool, leaving: int
    ) -> int:
        """1: one more, -1: one fewer, 0: as it is.

        `size` replicas are there to stay. While one is `starting`, or lost, nothing is decided; while some
        are `leaving`, none more is taken away, and they count for `most`.
        """
        rules = self._rules
        demand = self._demand.look(now, load.running + load.waiting)
        waiting = self._waiting.look(now, load.waiting)
        places = max(1, size * load.rows)
        full = demand >= rules.full * places or waiting >= max(1.0, rules.waits * places)
        roomy = demand <= rules.roomy * (size - 1) * load.rows and not full
        self._full_since = min(self._full_since, now) if full else math.inf
        self._roomy_since = min(self._roomy_since, now) if roomy else math.inf
        if starting or leaving:
            self._roomy_since = math.inf  # of a fleet that is about to be another
        if starting:
            self._full_since = math.inf
            return 0
        if size + leaving < most and now - self._full_since >= rules.up_seconds and now >= self._not_before:
            return self._decided(1)
        if size > least and now - self._roomy_since >= rules.down_seconds:
            return self._decided(-1)
        return 0

    def failed(self, now: float) -> float:
        """One more did not come up; returns after how many seconds the next may be tried."""
        pause = min(self._rules.longest_pause, self._rules.pause * 2.0**self._failures)
        self._failures += 1
        self._not_before = now + pause
        return pause

    def came(self) -> None:
        """One more came up."""
        self._failures = 0

    def _decided(self, by: int) -> int:
        self._full_since = self._roomy_since = math.inf
        return by


class OwnedMembership:
    """Decides for the replicas of one edge. Called on one event loop at a time."""

    found = False

    def __init__(
        self,
        least: int,
        most: int | None = None,
        *,
        scaler: Scaler | None = None,
        clock: Callable[[], float] = time.monotonic,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Raises InvalidRequest."""
        self._least, self._most = check_bounds(least, least if most is None else most)
        self._clock = clock
        self._scaler, self._start_seconds = scaler or Scaler(), start_seconds
        self._members: dict[str, Member] = {}
        self._names = map(str, itertools.count())  # of those to come
        self._report = Report({}, 0, 1)
        self._absent: dict[str, float] = {}  # serving members that are not up, and since when
        self._replacements: dict[str, Replacement] = {}  # by the old one, in the order of their turns

    # -- Membership

    async def report(self, report: Report) -> FleetPlan:
        """As Membership.report."""
        self._report = report
        self._decide(self._clock())
        return self._fleet_plan()

    async def resize(self, least: int, most: int) -> FleetPlan:
        """As Membership.resize."""
        self._least, self._most = check_bounds(least, most)
        log.info("between %d and %d replicas from now on", least, most)
        self._decide(self._clock())
        return self._fleet_plan()

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """As Membership.replace; one that is being replaced, or is on its way out, is not replaced again."""
        serving = self._serving()
        for name in names:
            if name not in self._members:
                raise NotFound("replica", name, f": there are {', '.join(serving) or 'none'}")
        for name in names or serving:
            under_way = self._replacements.get(name)
            successors = {found.new for found in self._replacements.values() if not found.over}
            if name in serving and name not in successors and (under_way is None or under_way.over):
                self._replacements.pop(name, None)
                self._replacements[name] = Replacement(name)
        self._decide(self._clock())
        return self._fleet_plan()

    # -- what was decided

    def _fleet_plan(self) -> FleetPlan:
        members, replacements = tuple(self._members.values()), tuple(self._replacements.values())
        return FleetPlan(members, self._least, self._most, replacements)

    def _serving(self) -> list[str]:
        return [member.name for member in self._members.values() if not member.draining]

    def _add(self, now: float, why: str) -> str:
        name = next(self._names)
        self._members[name] = Member(name)
        self._absent[name] = now
        log.info("replica %s is to start: %s", name, why)
        return name

    def _drain(self, name: str, why: str, successor: str = "") -> None:
        self._members[name] = Member(name, draining=True, successor=successor)
        self._absent.pop(name, None)
        log.info("replica %s is draining: %s", name, why)

    # -- deciding

    def _decide(self, now: float) -> None:
        self._look_who_is_up(now)
        self._end_who_is_left()
        self._replace_one(now)
        self._keep_bounds(now)

    @property
    def _loads(self) -> Mapping[str, MemberLoad]:
        return self._report.loads

    def _up(self, name: str) -> bool:
        load = self._loads.get(name)
        return load is not None and load.up

    def _look_who_is_up(self, now: float) -> None:
        for name in self._serving():
            if self._up(name):
                if self._absent.pop(name, None) is not None:
                    log.info("replica %s is up", name)
                    self._scaler.came()
            else:
                self._absent.setdefault(name, now)

    def _given_up(self, name: str, now: float) -> str:
        """Why nobody waits for it any more; empty: it is up, or may come yet."""
        if name not in self._absent:
            return ""
        load = self._loads.get(name)
        if load is not None and load.failures >= STARTS:
            return load.problem
        seconds = now - self._absent[name]
        if seconds < self._start_seconds:
            return ""
        return f"it is not up after {seconds:.0f} s; is there room for one more?"

    def _end_who_is_left(self) -> None:
        for name, member in tuple(self._members.items()):
            if member.draining and name not in self._loads:
                del self._members[name]
                log.info("replica %s has ended", name)

    def _replace_one(self, now: float) -> None:
        """The first whose turn has come goes a step on."""
        for old, found in tuple(self._replacements.items()):
            if found.over:
                continue
            if found.step is Step.DRAINING and old in self._members:
                return
            if found.step is Step.DRAINING:
                self._step(replace(found, step=Step.DONE))
            elif found.step is Step.STARTING:
                if not self._succeeded(found, now):
                    return
            elif self._draining():
                return
            elif old not in self._serving():
                self._step(replace(found, step=Step.FAILED, problem="it is no longer one of the fleet"))
            else:
                new = self._add(now, f"in the place of {old}")
                self._step(replace(found, new=new, step=Step.STARTING))
                return

    def _succeeded(self, found: Replacement, now: float) -> bool:
        """Whether the turn of the next has come: no successor came up, so all that wait are given up, too."""
        if self._up(found.new):
            self._drain(found.old, f"{found.new} is up in its place", successor=found.new)
            self._step(replace(found, step=Step.DRAINING))
            return False
        if not (problem := self._given_up(found.new, now)):
            return False
        self._drain(found.new, f"it did not come up: {problem}")
        self._step(
            replace(found, step=Step.FAILED, problem=f"replica {found.new} did not come up: {problem}")
        )
        for waiting in tuple(self._replacements.values()):
            if waiting.step is Step.QUEUED:
                text = f"not tried, since that of {found.old} failed"
                self._step(replace(waiting, step=Step.FAILED, problem=text))
        return True

    def _step(self, replacement: Replacement) -> None:
        self._replacements[replacement.old] = replacement
        words = f": {replacement.problem}" if replacement.problem else ""
        log.info("replacement of %s: %s%s", replacement.old, replacement.step, words)
        over = [old for old, found in self._replacements.items() if found.over]
        for old in over[:-MOST]:
            del self._replacements[old]

    def _draining(self) -> bool:
        return any(member.draining for member in self._members.values())

    def _keep_bounds(self, now: float) -> None:
        """By the bounds, and between them by load; successors that are not up count for nothing yet."""
        successors = {r.new for r in self._replacements.values() if r.step is Step.STARTING}
        names = [name for name in self._serving() if name not in successors]
        for _ in range(self._least - len(names)):
            names.append(self._add(now, f"at least {self._least}"))
        under_way = any(not found.over for found in self._replacements.values())
        still = not self._draining() and not under_way
        lost = [name for name in names if self._given_up(name, now)]
        if still and len(names) > self._least and lost:
            pause = self._scaler.failed(now)
            problem = self._given_up(lost[0], now)
            self._drain(lost[0], f"it did not come up ({problem}); no other is tried for {pause:.0f} s")
            return
        starting = under_way or bool(self._absent)
        leaving, bounds = len(self._members) - len(self._serving()), (self._least, self._most)
        load = self._load()
        wish = self._scaler.look(now, len(names), load, *bounds, starting=starting, leaving=leaving)
        if still and len(names) > self._most:
            self._drain(self._idlest(names), f"at most {self._most}")
        elif wish > 0:
            self._add(now, "requests fill those that there are")
        elif wish < 0:
            self._drain(self._idlest(names), "the others have room for all requests")

    def _load(self) -> Load:
        running = sum(load.running for load in self._loads.values())
        waiting = sum(load.waiting for load in self._loads.values())
        return Load(running, self._report.waiting + waiting, self._report.rows)

    def _idlest(self, names: Sequence[str]) -> str:
        """Who is lost, else who has least to do, else who came last."""

        def cost(name: str) -> tuple[bool, int, int]:
            load = self._loads.get(name, MemberLoad(False))
            return name not in self._absent, load.running + load.waiting, -names.index(name)

        return min(names, key=cost)
