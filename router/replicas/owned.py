"""Replicas that this edge starts and ends: how many there are, and new ones in the place of old ones.

No clock of its own, no network: the edge reports what it sees, and follows the roster that it gets.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from router.errors import NotFound
from router.replicas.membership import (
    MOST,
    Member,
    MemberLoad,
    MemberState,
    Replacement,
    Report,
    Roster,
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


@dataclass(slots=True)
class _Absence:
    since: float
    failures: int = 0
    problem: str = ""


@dataclass(slots=True)
class _State:
    members: dict[str, Member] = field(default_factory=dict)
    number: int = 0
    following: int = 0  # the name of the next member


class OwnedMembership:
    """Decides for the replicas of one edge. Called on one event loop at a time."""

    found = False

    def __init__(
        self,
        least: int,
        most: int | None = None,
        end: Callable[[str], None] = lambda name: None,
        *,
        scaler: Scaler | None = None,
        clock: Callable[[], float] = time.monotonic,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """`end` ends a replica for good that the edge has let go; it may block, and is called in a thread.
        Raises InvalidRequest.
        """
        self._least, self._most = check_bounds(least, least if most is None else most)
        self._end, self._clock = end, clock
        self._scaler, self._start_seconds = scaler or Scaler(), start_seconds
        self._state = _State()
        self._report = Report({}, 0, 1)
        self._absent: dict[str, _Absence] = {}  # serving members that are not up
        self._replacements: dict[str, Replacement] = {}  # by the old one, in the order of their turns
        self._ending: set[asyncio.Task[None]] = set()

    # -- Membership

    async def report(self, report: Report) -> Roster:
        """As Membership.report."""
        self._report = report
        self._decide(self._clock())
        return self._roster()

    async def resize(self, least: int, most: int) -> Roster:
        """As Membership.resize."""
        self._least, self._most = check_bounds(least, most)
        self._state.number += 1
        log.info("between %d and %d replicas from now on", least, most)
        self._decide(self._clock())
        return self._roster()

    async def replace(self, names: Sequence[str]) -> Roster:
        """As Membership.replace; one that is being replaced, or is on its way out, is not replaced again."""
        serving = self._serving()
        for name in names:
            if name not in self._state.members:
                raise NotFound("replica", name, f": there are {', '.join(serving) or 'none'}")
        for name in names or serving:
            under_way = self._replacements.get(name)
            successors = {found.new for found in self._replacements.values() if not found.over}
            if name in serving and name not in successors and (under_way is None or under_way.over):
                self._replacements.pop(name, None)
                self._replacements[name] = Replacement(name)
        self._state.number += 1
        self._decide(self._clock())
        return self._roster()

    # -- what was decided

    def _roster(self) -> Roster:
        members, replacements = tuple(self._state.members.values()), tuple(self._replacements.values())
        return Roster(self._state.number, members, self._least, self._most, replacements)

    def _serving(self) -> list[str]:
        return [m.name for m in self._state.members.values() if m.state is MemberState.SERVING]

    def _add(self, now: float, why: str) -> str:
        state = self._state
        name, state.following = str(state.following), state.following + 1
        self._set(Member(name))
        self._absent[name] = _Absence(now)
        log.info("replica %s is to start: %s", name, why)
        return name

    def _set(self, member: Member) -> None:
        self._state.members[member.name] = member
        self._state.number += 1

    def _drain(self, name: str, why: str, successor: str = "") -> None:
        self._set(Member(name, MemberState.DRAINING, successor))
        self._absent.pop(name, None)
        log.info("replica %s is draining: %s", name, why)

    def _give_up(self, name: str, why: str) -> None:
        """One that is not up is ended at once, so that nobody waits for its start, and again when the edge
        has let it go, since it may have begun to start it just then.
        """
        self._drain(name, why)
        if not self._up(name):
            self._end_soon(name)

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
                continue
            absence = self._absent.setdefault(name, _Absence(now))
            if (load := self._loads.get(name)) is not None and load.problem:
                absence.problem, absence.failures = load.problem, load.failures

    def _given_up(self, name: str, now: float) -> str:
        """Why nobody waits for it any more; empty: it is up, or may come yet."""
        absent = self._absent.get(name)
        if absent is None:
            return ""
        if absent.failures >= STARTS:
            return absent.problem
        seconds = now - absent.since
        if seconds < self._start_seconds:
            return ""
        return f"it is not up after {seconds:.0f} s; is there room for one more?"

    def _end_who_is_left(self) -> None:
        left = [m.name for m in self._state.members.values() if m.state is MemberState.DRAINING]
        for name in left:
            if name not in self._loads:
                del self._state.members[name]
                self._state.number += 1
                log.info("replica %s has nothing left to do, and is ended", name)
                self._end_soon(name)

    def _end_soon(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._have_ended(name))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _have_ended(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._end, name)
        except Exception:  # whatever a link raises: the fleet goes on without it
            log.exception("replica %s could not be ended", name)

    def _replace_one(self, now: float) -> None:
        """The first whose turn has come goes a step on."""
        for old, found in tuple(self._replacements.items()):
            if found.over:
                continue
            if found.step is Step.DRAINING and old in self._state.members:
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
        self._give_up(found.new, f"it did not come up: {problem}")
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
        self._state.number += 1
        words = f": {replacement.problem}" if replacement.problem else ""
        log.info("replacement of %s: %s%s", replacement.old, replacement.step, words)
        over = [old for old, found in self._replacements.items() if found.over]
        for old in over[:-MOST]:
            del self._replacements[old]

    def _draining(self) -> bool:
        return any(m.state is MemberState.DRAINING for m in self._state.members.values())

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
            self._give_up(lost[0], f"it did not come up ({problem}); no other is tried for {pause:.0f} s")
            return
        starting = under_way or bool(self._absent)
        leaving, bounds = len(self._state.members) - len(self._serving()), (self._least, self._most)
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
