"""The decisions of a crew, of one edge or of many: who joins, who goes, whose turn it is to be replaced.

No clock of its own, no network: edges call it, in their own process or from others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from router.errors import NotFound
from router.replicas.crew import MOST, Member, MemberState, Replacement, Report, Roster, Step, check_bounds
from router.replicas.scaling import Load, Scaler

log = logging.getLogger(__name__)

SILENCE = 10.0  # seconds after which an edge is forgotten
START_SECONDS = 900.0  # in which one must come up that is not needed for the least number
STARTS = 3  # that may fail, likewise


@dataclass(slots=True)
class _Edge:
    report: Report
    at: float


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


class LocalCrew:
    """The decisions, of one edge or of many. Called on one event loop at a time."""

    found = False

    def __init__(
        self,
        least: int,
        most: int | None = None,
        end: Callable[[str], None] = lambda name: None,
        *,
        names: Sequence[str] = (),
        scaler: Scaler | None = None,
        clock: Callable[[], float] = time.monotonic,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """`end` ends a member for good, whom no edge names any more; it may block, and is called in a thread.
        `names` are those of the first members; without them they are numbers. Raises InvalidRequest.
        """
        self._least, self._most = check_bounds(least, least if most is None else most)
        self._end, self._names, self._clock = end, tuple(names), clock
        self._scaler, self._start_seconds = scaler or Scaler(), start_seconds
        self._state = _State()
        self._edges: dict[str, _Edge] = {}
        self._absent: dict[str, _Absence] = {}  # serving members that are not up
        self._replacements: dict[str, Replacement] = {}  # by the old one, in the order of their turns
        self._ended: set[str] = set()  # no members, and still named by an edge
        self._ending: set[asyncio.Task[None]] = set()

    # -- Crew

    async def report(self, report: Report) -> Roster:
        """As Crew.report."""
        now = self._clock()
        self.adopt(report.loads)
        self._edges[report.edge] = _Edge(report, now)
        for name, edge in tuple(self._edges.items()):
            if now - edge.at > SILENCE:
                log.warning("edge %s is silent, and forgotten", name)
                del self._edges[name]
        self._decide(now)
        return self._roster()

    async def resize(self, least: int, most: int) -> Roster:
        """As Crew.resize."""
        self._least, self._most = check_bounds(least, most)
        self._state.number += 1
        log.info("between %d and %d replicas from now on", least, most)
        self._decide(self._clock())
        return self._roster()

    async def replace(self, names: Sequence[str]) -> Roster:
        """As Crew.replace; one that is being replaced, or is on its way out, is not replaced again."""
        serving = self._serving()
        for name in names:
            if name not in self._state.members:
                raise NotFound("replica", name, f": there are {', '.join(serving) or 'none'}")
        for name in names or serving:
            under_way = self._replacements.get(name)
            heirs = {found.new for found in self._replacements.values() if not found.over}
            if name in serving and name not in heirs and (under_way is None or under_way.over):
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
        if not self._names:
            name, state.following = str(state.following), state.following + 1
        else:
            (name, *rest), state.following = self._names, max(state.following, len(self._names))
            self._names = tuple(rest)
        self._set(Member(name))
        self._absent[name] = _Absence(now)
        log.info("replica %s is to start: %s", name, why)
        return name

    def _set(self, member: Member) -> None:
        self._state.members[member.name] = member
        self._state.number += 1

    def _drain(self, name: str, why: str, heir: str = "") -> None:
        self._set(Member(name, MemberState.DRAINING, heir))
        self._absent.pop(name, None)
        log.info("replica %s is draining: %s", name, why)

    def _give_up(self, name: str, why: str) -> None:
        """One that nobody has up is ended at once, so that no edge waits for its start, and again when no
        edge names it, since one may have begun to start it just then.
        """
        self._drain(name, why)
        if not self._up_somewhere(name):
            self._end_soon(name)

    def adopt(self, names: Iterable[str]) -> None:
        """Take over members that this crew has never had: it is new, in the place of one that was lost."""
        for name in sorted(names, key=lambda name: (len(name), name)):  # by number: each is above the last
            if name.isdecimal() and int(name) >= self._state.following and name not in self._state.members:
                self._state.following = int(name) + 1
                self._set(Member(name))
            elif name not in self._state.members:
                self._ended.add(name)

    # -- deciding

    def _decide(self, now: float) -> None:
        self._look_who_is_up(now)
        self._end_who_is_left(now)
        self._replace_one(now)
        self._keep_bounds(now)

    def _up(self, name: str) -> bool:
        """Every edge finds it up."""
        loads = [edge.report.loads.get(name) for edge in self._edges.values()]
        return bool(loads) and all(load is not None and load.up for load in loads)

    def _up_somewhere(self, name: str) -> bool:
        """Some edge finds it up: where another does not, the way between them is cut."""
        loads = [edge.report.loads.get(name) for edge in self._edges.values()]
        return any(load is not None and load.up for load in loads)

    def _look_who_is_up(self, now: float) -> None:
        for name in self._serving():
            if self._up(name):
                if self._absent.pop(name, None) is not None:
                    log.info("replica %s is up", name)
                    self._scaler.came()
                continue
            absence = self._absent.setdefault(name, _Absence(now))
            for edge in self._edges.values():
                if (load := edge.report.loads.get(name)) is not None and load.problem:
                    absence.problem = load.problem
                    absence.failures = max(absence.failures, load.failures)

    def _given_up(self, name: str, now: float) -> str:
        """Why nobody waits for it any more; empty: it is up, or may come yet."""
        absent = self._absent.get(name)
        if absent is None:
            return ""
        if absent.failures >= STARTS and not self._up_somewhere(name):
            return absent.problem
        seconds = now - absent.since
        if seconds < self._start_seconds:
            return ""
        return f"it is not up after {seconds:.0f} s; is there room for one more?"

    def _end_who_is_left(self, now: float) -> None:
        named = {name for edge in self._edges.values() for name in edge.report.loads}
        left = [m.name for m in self._state.members.values() if m.state is MemberState.DRAINING]
        for name in (*left, *tuple(self._ended)):
            if name in named or not self._edges:
                continue
            self._ended.discard(name)
            if self._state.members.pop(name, None) is not None:
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
        """Whether the turn of the next has come: no heir came up, so all that wait are given up, too."""
        if self._up(found.new):
            self._drain(found.old, f"{found.new} is up in its place", heir=found.new)
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
        """By the bounds, and between them by load; heirs that are not up count for nothing yet."""
        heirs = {r.new for r in self._replacements.values() if r.step is Step.STARTING}
        names = [name for name in self._serving() if name not in heirs]
        for _ in range(self._least - len(names)):
            names.append(self._add(now, f"at least {self._least}"))
        under_way = any(not found.over for found in self._replacements.values())
        still = not self._draining() and not under_way
        lost = [n for n in names if self._given_up(n, now) and not self._up_somewhere(n)]
        if still and len(names) > self._least and lost:
            pause = self._scaler.failed(now)
            problem = self._given_up(lost[0], now)
            self._give_up(lost[0], f"it did not come up ({problem}); no other is tried for {pause:.0f} s")
            return
        starting = under_way or bool(self._absent) or not self._edges
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
        rows = max((edge.report.rows for edge in self._edges.values()), default=1)
        running = waiting = 0
        for edge in self._edges.values():
            waiting += edge.report.waiting
            for load in edge.report.loads.values():
                running, waiting = running + load.running, waiting + load.waiting
        return Load(running, waiting, rows)

    def _idlest(self, names: Sequence[str]) -> str:
        """Who is lost, else who has least to do, else who came last."""

        def cost(name: str) -> tuple[bool, int, int]:
            loads = [found for e in self._edges.values() if (found := e.report.loads.get(name)) is not None]
            jobs = sum(load.running + load.waiting for load in loads)
            return name not in self._absent, jobs, -names.index(name)

        return min(names, key=cost)
