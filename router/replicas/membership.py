"""Which replicas an edge has: those that it starts, those that it finds, or those that it was given.

The edge reports what it sees, and follows the fleet plan that it gets. It starts a replica that is new in the
plan, and drains one that is on the way out. One that is draining is ended when the edge no longer names it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from router.errors import ConfigError, FailedPrecondition, FieldViolation, InvalidRequest, NotFound
from router.replicas.link import Link, Security

log = logging.getLogger(__name__)

MOST = 1024  # replicas of a fleet
DNS = "dns:///"
START_SECONDS = 900.0  # in which one must come up that is not needed for the least number
STARTS = 3  # that may fail, likewise


class Step(StrEnum):
    """How far a replacement has come."""

    QUEUED = "queued"
    STARTING = "starting"  # the new one is not up yet
    DRAINING = "draining"  # the new one is up, the old one ends what it has
    DONE = "done"
    FAILED = "failed"  # the old one stays


@dataclass(frozen=True, slots=True)
class Member:
    """A replica by its name, which no other ever gets. `successor` gets the adapters of one that drains."""

    name: str
    draining: bool = False  # it gets nothing new, and is ended when nothing runs there
    successor: str = ""


@dataclass(frozen=True, slots=True)
class MemberLoad:
    """How the edge finds a replica: jobs of this edge alone. `problem`: why it is not up, if that is known;
    `failures`: starts that failed since it last was.
    """

    up: bool
    running: int = 0
    waiting: int = 0
    problem: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What an edge sees, every second. `loads` names the replicas that it still has something to do with;
    `waiting` are jobs that no replica has yet, `rows` what one replica runs at a time.
    """

    loads: Mapping[str, MemberLoad]
    waiting: int
    rows: int


@dataclass(frozen=True, slots=True)
class MemberReplacement:
    """One member in the place of another."""

    old: str
    new: str = ""
    step: Step = Step.QUEUED
    problem: str = ""  # of one that failed

    @property
    def over(self) -> bool:
        """Nothing more comes of it."""
        return self.step in (Step.DONE, Step.FAILED)


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet as it is to be."""

    members: tuple[Member, ...]
    least: int
    most: int
    replacements: tuple[MemberReplacement, ...] = ()  # the latest of each member


class Membership(ABC):
    """Decides which replicas an edge has. Called on one event loop at a time."""

    found = False  # whether others start the replicas; then one that is up is enough to begin
    no_resize = "these replicas are fixed: start the server again with another number"
    no_replace = "these replicas are fixed: drain them (`lora-router replicas drain`)"

    @abstractmethod
    async def report(self, report: FleetReport) -> FleetPlan:
        """Take what the edge sees, every second and after changes; returns what it is to follow."""

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Other bounds from now on. Raises InvalidRequest, FailedPrecondition."""
        raise FailedPrecondition(self.no_resize)

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """One after the other, each by a new one; with no names all.

        Raises NotFound, and replaces none; FailedPrecondition.
        """
        raise FailedPrecondition(self.no_replace)


class FixedMembership(Membership):
    """Replicas that are and stay those."""

    def __init__(self, names: Sequence[str]) -> None:
        self._fleet_plan = FleetPlan(tuple(map(Member, names)), len(names), len(names))

    async def report(self, report: FleetReport) -> FleetPlan:
        """Always the same."""
        return self._fleet_plan


class FoundMembership(Membership):
    """Replicas that others start: systemd, Kubernetes, a person.

    They are found by their addresses: HOST:PORT, or dns:///HOST:PORT for all addresses of a name,
    which is looked up with each report.
    """

    found = True
    no_resize = "these replicas are found by their addresses: what starts them says how many"
    no_replace = (
        "these replicas are found by their addresses: drain them (`lora-router replicas drain`), and what "
        "started them starts new ones"
    )

    def __init__(self, addresses: Sequence[str], security: Security, tls_name: str = "") -> None:
        """`tls_name` is the name in all certificates. Raises ConfigError for what is no address."""
        for address in addresses:
            host, _, port = address.removeprefix(DNS).rpartition(":")
            if not host or not port.isdecimal():
                raise ConfigError(
                    f"a replica's address is HOST:PORT or dns:///HOST:PORT, such as 10.0.0.7:50060, not "
                    f"{address!r}"
                )
        self._addresses, self._security = tuple(dict.fromkeys(addresses)), security
        self._last: dict[str, tuple[str, ...]] = {}  # what a name stood for, while it cannot be looked up
        self._tls_name = tls_name
        self._hosts: dict[str, str] = {}  # the name that an address was found under

    def link(self, name: str) -> Link:
        """The way to the replica at that address."""
        return Link(name, name, self._security, tls_name=self._tls_name or self._hosts.get(name, ""))

    async def report(self, report: FleetReport) -> FleetPlan:
        """Those that are found now."""
        names: dict[str, None] = {}
        for address in self._addresses:
            names |= dict.fromkeys(await self._resolved(address))
        return FleetPlan(tuple(map(Member, names)), 1, MOST)

    async def _resolved(self, address: str) -> tuple[str, ...]:
        if not address.startswith(DNS):
            return (address,)
        host, _, port = address.removeprefix(DNS).rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )
        except OSError as error:
            log.warning("replicas of %s cannot be looked up: %s", host, error)
            return self._last.get(address, ())
        pairs = sorted({(str(info[4][0]), info[4][1]) for info in found})
        self._last[address] = tuple(f"[{ip}]:{at!s}" if ":" in ip else f"{ip}:{at!s}" for ip, at in pairs)
        self._hosts |= dict.fromkeys(self._last[address], host)
        return self._last[address]


@dataclass(frozen=True, slots=True)
class ScalingRules:
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
class FleetLoad:
    """Jobs of all edges, running and waiting, and the rows of a replica."""

    running: int
    waiting: int
    rows: int


class LoadScaler:
    """How many replicas a load asks for; asked every second or so. Times are seconds of one clock.

    Up when what runs and waits has nearly filled the places for some seconds; down, minutes later, when one
    fewer would still have room. Between the two lies a band in which nothing happens, so a steady load is
    never answered by both, and one that swings faster than `down_seconds` keeps what its peaks need.
    """

    def __init__(self, rules: ScalingRules | None = None) -> None:
        self._rules = rules or ScalingRules()
        self._demand = self._waiting = 0.0  # means over time
        self._looked = math.inf
        self._full_since = self._roomy_since = math.inf
        self._failures, self._not_before = 0, -math.inf

    def look(
        self, now: float, size: int, load: FleetLoad, least: int, most: int, *, starting: bool, leaving: int
    ) -> int:
        """1: one more, -1: one fewer, 0: as it is.

        `size` replicas are there to stay. While one is `starting`, or lost, nothing is decided; while some
        are `leaving`, none more is taken away, and they count for `most`.
        """
        rules = self._rules
        kept = math.exp(min(0.0, self._looked - now) / rules.memory)
        self._looked, jobs = now, load.running + load.waiting
        demand = self._demand = jobs + (self._demand - jobs) * kept
        waiting = self._waiting = load.waiting + (self._waiting - load.waiting) * kept
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


class OwnedMembership(Membership):
    """Replicas that this edge starts and ends: how many there are, and new ones in the place of old ones.

    No clock of its own, no network: it decides by the reports of its edge.
    """

    def __init__(
        self,
        least: int,
        most: int | None = None,
        *,
        scaler: LoadScaler | None = None,
        clock: Callable[[], float] = time.monotonic,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Raises InvalidRequest."""
        self._least, self._most = check_bounds(least, least if most is None else most)
        self._clock = clock
        self._scaler, self._start_seconds = scaler or LoadScaler(), start_seconds
        self._members: dict[str, Member] = {}
        self._names = map(str, itertools.count())  # of those to come
        self._report = FleetReport({}, 0, 1)
        self._absent: dict[str, float] = {}  # serving members that are not up, and since when
        self._replacements: dict[str, MemberReplacement] = {}  # by the old one, in the order of their turns

    async def report(self, report: FleetReport) -> FleetPlan:
        """Take what the edge sees, and decide."""
        self._report = report
        self._decide(self._clock())
        return self._fleet_plan()

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Other bounds from now on. Raises InvalidRequest."""
        self._least, self._most = check_bounds(least, most)
        log.info("between %d and %d replicas from now on", least, most)
        self._decide(self._clock())
        return self._fleet_plan()

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """As Membership.replace; one that is being replaced, or is draining, is not replaced again."""
        serving = self._serving()
        for name in names:
            if name not in self._members:
                raise NotFound("replica", name, f": there are {', '.join(serving) or 'none'}")
        for name in names or serving:
            under_way = self._replacements.get(name)
            successors = {found.new for found in self._replacements.values() if not found.over}
            if name in serving and name not in successors and (under_way is None or under_way.over):
                self._replacements.pop(name, None)
                self._replacements[name] = MemberReplacement(name)
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

    def _succeeded(self, found: MemberReplacement, now: float) -> bool:
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

    def _step(self, replacement: MemberReplacement) -> None:
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
        running = sum(load.running for load in self._loads.values())
        waiting = sum(load.waiting for load in self._loads.values()) + self._report.waiting
        load = FleetLoad(running, waiting, self._report.rows)
        wish = self._scaler.look(now, len(names), load, *bounds, starting=starting, leaving=leaving)
        if still and len(names) > self._most:
            self._drain(self._idlest(names), f"at most {self._most}")
        elif wish > 0:
            self._add(now, "requests fill those that there are")
        elif wish < 0:
            self._drain(self._idlest(names), "the others have room for all requests")

    def _idlest(self, names: Sequence[str]) -> str:
        """Who is lost, else who has least to do, else who came last."""

        def cost(name: str) -> tuple[bool, int, int]:
            load = self._loads.get(name, MemberLoad(False))
            return name not in self._absent, load.running + load.waiting, -names.index(name)

        return min(names, key=cost)


def check_bounds(least: int, most: int) -> tuple[int, int]:
    """Both. Raises InvalidRequest naming what is wrong."""
    found = []
    if not 1 <= least <= MOST:
        found.append(FieldViolation("least", f"must be from 1 to {MOST}, not {least}"))
    if not least <= most <= MOST:
        found.append(FieldViolation("most", f"must be from least ({least}) to {MOST}, not {most}"))
    if found:
        raise InvalidRequest(found)
    return least, most
