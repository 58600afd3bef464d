"""The replicas of one edge, as the fleet plan wants them: who joins, who is emptied, who is let go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from router.engine.base import EngineStatus
from router.errors import ConfigError, NotFound, RouterError, Unavailable
from router.replicas.link import Link, LinkLost
from router.replicas.membership import FleetPlan, Member, MemberLoad, Membership, Report
from router.replicas.messages import Hello, check_alike, drain
from router.replicas.placement import Placement
from router.replicas.replica import Replica
from router.replicas.weights import LoadedAdapter, Weights

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0  # between two reports, if nothing changes
FIND_SECONDS = 600.0  # until one replica that others start is up
RETRY_SECONDS = 0.5  # between two tries to reach one
MOMENT_SECONDS = 1.0  # for the others, once one is up
SUMS = (
    "running",
    "waiting",
    "reading",
    "background",
    "cache_blocks",
    "cache_blocks_free",
    "slots",
    "host_bytes",
)
COUNTERS = ("steps", "preemptions", "background_dropped", "prefix_hit_tokens", "prefix_query_tokens")


class Members:
    """Reports to the membership and follows its fleet plan. `replicas` are those of this edge by name, with
    those that drain.
    """

    def __init__(
        self,
        membership: Membership,
        link: Callable[[str], Link],
        edge: str,
        stall_seconds: float,
        replicas: dict[str, Replica],
        placement: Placement,
        weights: Weights,
        *,
        places: tuple[int, int],
        jobs: Callable[[str], int],
        waiting: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        attach: Callable[[], None],
    ) -> None:
        """`link` gives the way to a replica by its name. Each has `places` for jobs that run and that wait;
        `jobs` counts those at a replica, `waiting` those that no replica has; `attach` has all begin on this
        event loop.
        """
        self.membership, self._link, self._edge = membership, link, edge
        self._stall = stall_seconds
        self.replicas, self._placement, self._weights = replicas, placement, weights
        self.totals = Totals(replicas)
        self._rows, self._queue = places
        self._jobs, self._waiting, self._spawn, self._attached = jobs, waiting, spawn, attach
        self.fleet_plan = FleetPlan((), 0, 0)
        self._hello: Hello | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    # -- from start to end

    def start(self, meanwhile: Callable[[], Any]) -> tuple[Hello, Any]:
        """Have the least number of members up, and do something `meanwhile`; blocks. Returns what they say,
        and what came of it.

        Raises ConfigError naming one that does not start, or differs.
        """
        with ThreadPoolExecutor(1, "membership") as thread:
            self.fleet_plan = thread.submit(asyncio.run, self._reported()).result()
        over = Event()
        try:
            results = self._begin(over)
            made = meanwhile()
            hellos = self._wait(results)
            hello = self._hello = check_alike(hellos)
        except BaseException:
            over.set()
            self.close()
            raise
        over.set()
        for name, replica in self.replicas.items():
            replica.expect(hello, up=name in hellos)
            if replica.up:
                self._placement.join(name)
        return hello, made

    def _begin(self, over: Event) -> SimpleQueue[tuple[str, Hello | Exception]]:
        """Start the first replicas, each in a thread, until `over`; where others start them, try again."""
        end = time.monotonic() + FIND_SECONDS
        while not (names := [m.name for m in self.fleet_plan.members if not m.draining]):
            if time.monotonic() > end:
                raise ConfigError(f"no replica was found in {FIND_SECONDS:g} s")
            time.sleep(RETRY_SECONDS)
            self.fleet_plan = asyncio.run(self._reported())
        results: SimpleQueue[tuple[str, Hello | Exception]] = SimpleQueue()

        def begin(link: Link) -> None:
            while True:
                try:
                    results.put((link.name, link.start()))
                    return
                except (LinkLost, RouterError) as error:
                    self.replicas[link.name].problem = str(error)
                    if not self.membership.found or isinstance(error, ConfigError):
                        results.put((link.name, error))
                        return
                if over.wait(RETRY_SECONDS):
                    return

        links = [self._link(name) for name in names]
        for link in links:
            self.replicas[link.name] = self._replica(link)
        for link in links:
            Thread(target=begin, args=(link,), name=f"replica {link.name}", daemon=True).start()
        return results

    def _wait(self, results: SimpleQueue[tuple[str, Hello | Exception]]) -> dict[str, Hello]:
        """Until all are up; where others start them until one is, and a moment for the rest."""
        hellos: dict[str, Hello] = {}
        seconds = FIND_SECONDS if self.membership.found else None
        while len(hellos) < len(self.replicas):
            try:
                name, said = results.get(timeout=seconds)
            except Empty:
                if hellos:
                    break
                why = "; ".join(f"{name}: {replica.problem}" for name, replica in self.replicas.items())
                raise ConfigError(f"no replica is up after {FIND_SECONDS:g} s: {why}") from None
            if isinstance(said, Exception):
                raise ConfigError(f"replica {name} does not start: {said}") from said
            hellos[name] = said
            if self.membership.found:
                seconds = MOMENT_SECONDS
        return hellos

    def _replica(self, link: Link) -> Replica:
        replica = Replica(link, self._edge, self._stall, self._hello)
        replica.came, replica.went = self._came, self._went
        replica.ends, replica.stalled = self._ends, self._stalled
        return replica

    def attach(self) -> None:
        """Follow replicas and fleet plan on this event loop."""
        for replica in self.replicas.values():
            self._runs[replica.name] = self._spawn(replica.run())
        self._spawn(self._follow())

    def close(self) -> None:
        """End them all; blocks."""
        with ThreadPoolExecutor(max(1, len(self.replicas)), "replicas") as threads:
            list(threads.map(Replica.close, tuple(self.replicas.values())))

    # -- what operators and admission ask

    def seen(self) -> Sequence[Replica]:
        """All that this edge has something to do with, in the order in which they came."""
        return tuple(self.replicas.values())

    def places(self) -> tuple[int, int]:
        """Jobs that those that are up can run, and can run or let wait; never less than one replica's."""
        up = max(1, sum(replica.up for replica in self.replicas.values()))
        return up * self._rows, up * (self._rows + self._queue)

    async def resize(self, least: int, most: int) -> FleetPlan:
        """As Membership.resize; also raises FailedPrecondition."""
        self._attached()
        return self._changing(await self.membership.resize(least, most))

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """As Membership.replace; also raises FailedPrecondition."""
        self._attached()
        return self._changing(await self.membership.replace(names))

    async def drain(self, name: str) -> None:
        """Have a replica end what it has and end itself; what started it starts it again.

        Raises NotFound, Unavailable.
        """
        self._attached()
        replica = self.replicas.get(name)
        if replica is None:
            raise NotFound("replica", name, f": there are {', '.join(self.replicas) or 'none'}")
        if not replica.up:
            raise Unavailable(f"replica {name} is not up")
        if not any(other.takes for other in self.replicas.values() if other is not replica):
            raise Unavailable("no other replica is up: drain this one when another is")
        try:
            await replica.call(drain)
        except LinkLost as lost:
            raise Unavailable(str(lost)) from None

    def _changing(self, fleet_plan: FleetPlan) -> FleetPlan:
        self.fleet_plan = fleet_plan
        self._changed.set()  # the next report is now, and its answer is followed
        return fleet_plan

    # -- reports up, fleet plans down

    async def _reported(self) -> FleetPlan:
        loads = {name: self._load(replica) for name, replica in self.replicas.items()}
        return await self.membership.report(Report(loads, self._waiting(), self._rows))

    def _load(self, replica: Replica) -> MemberLoad:
        jobs = self._jobs(replica.name)
        waiting = min(jobs, replica.status.waiting)
        return MemberLoad(replica.up, jobs - waiting, waiting, replica.problem, replica.failures)

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            try:
                self._apply(await self._reported())
            except Exception:  # of a link, say: the rest goes on
                log.exception("the fleet plan cannot be followed")
            with suppress(TimeoutError):  # wait_for may swallow the end of an edge
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._changed.wait()

    def _apply(self, fleet_plan: FleetPlan) -> None:
        self.fleet_plan = fleet_plan
        wanted = {member.name: member for member in fleet_plan.members}
        for name, member in wanted.items():
            if name not in self.replicas and not member.draining:
                self._join(name)
        for name, replica in tuple(self.replicas.items()):
            found = wanted.get(name, Member(name, draining=True))
            if found.draining and not replica.draining:
                replica.drain()
                self._placement.close(name)
                self._spawn(self._let_go(replica, found.successor))

    def _join(self, name: str) -> None:
        replica = self.replicas[name] = self._replica(self._link(name))
        self._runs[name] = self._spawn(replica.run())

    def _came(self, replica: Replica) -> None:
        if not replica.draining:
            self._placement.join(replica.name)
            self._weights.restore()
        self._changed.set()

    def _went(self, replica: Replica) -> None:
        self.totals.lost(replica)
        homeless = self._placement.leave(replica.name)
        log.info("replica %s was the only home of %d adapters", replica.name, len(homeless))
        self._weights.restore()
        self._changed.set()

    # -- one that is draining

    def _stalled(self, replica: Replica) -> None:
        """Its jobs go elsewhere, where there is a replica that is well."""
        if any(other.takes and not other.stalls for other in self.replicas.values()):
            replica.abandon()

    def _ends(self, replica: Replica) -> None:
        """It takes nothing new and ends itself: empty it, so that it can."""
        if not replica.draining:
            log.info("replica %s drains, and ends when nothing is left", replica.name)
            self._placement.close(replica.name)
            self._spawn(self._empty(replica))

    async def _empty(self, replica: Replica) -> None:
        """Its adapters to others, the busiest first; then it releases all that it holds for this edge."""
        for digest in self._placement.living(replica.name, time.monotonic()):
            kept = self._weights.get(digest)
            if kept is not None and replica.up:
                await self._rehome(kept, replica.name, "")
        await replica.idle()
        if replica.ending:
            replica.detach()

    async def _let_go(self, replica: Replica, successor: str) -> None:
        """Its adapters to others, the busiest first, which it serves until then; its jobs to their end.

        One that is not up is ended at once, so that nobody waits for its start, and again afterwards.
        """
        name = replica.name
        if not replica.up:
            await self._end(replica)
        for digest in self._placement.living(name, time.monotonic()):
            kept = self._weights.get(digest)
            if kept is not None and replica.up:
                await self._rehome(kept, name, successor)
        self._placement.leave(name)
        self._weights.restore()  # what came there meanwhile
        await replica.idle()
        replica.leave()
        await asyncio.wait((self._runs.pop(name),))
        await self._end(replica)
        self._placement.leave(name)
        self.totals.left(replica)
        del self.replicas[name]
        log.info("replica %s has been let go", name)
        self._changed.set()

    async def _end(self, replica: Replica) -> None:
        """End its process, unless somebody else has started it."""
        try:
            await asyncio.to_thread(replica.close)
        except Exception:  # whatever a link raises: the fleet goes on without it
            log.exception("replica %s could not be ended", replica.name)

    async def _rehome(self, kept: LoadedAdapter, name: str, successor: str) -> None:
        def elsewhere() -> set[str]:
            return set(self._placement.homes(kept.digest)) - self._placement.closing

        if successor and successor not in elsewhere():
            await self._bring(kept, {successor})
        if not elsewhere():
            await self._bring(kept, None)
        if elsewhere():
            self._placement.unsettle(kept.digest, name)

    async def _bring(self, kept: LoadedAdapter, among: set[str] | None) -> None:
        try:
            await self._weights.bring(kept, among)
        except RouterError as error:
            to = f" to {', '.join(among)}" if among else ""
            log.warning("adapter %s cannot move%s: %s", kept.name, to, error)


class Totals:
    """The status of all replicas in one, for health, metrics and admission.

    Counters never go back: what a replica had counted when it was lost stays in the sum."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas
        self._past: Counter[str] = Counter()
        self._down_since = time.monotonic()

    def lost(self, replica: Replica) -> None:
        """A replica is down; the next one in its place counts from 0."""
        self.left(replica)
        self._down_since = time.monotonic()

    def left(self, replica: Replica) -> None:
        """A replica is not counted any more."""
        for name in COUNTERS:
            self._past[name] += getattr(replica.status, name)
        replica.status = EngineStatus()

    def status(self, waiting: int) -> EngineStatus:
        """`waiting` are jobs that no replica has yet.

        All make progress while one replica does, or is idle and answers: one that hangs gets nothing new.
        With none up, they are busy, and their last progress was when the last one went.
        """
        found = [replica for replica in self._replicas.values() if replica.up]
        up = [replica.status for replica in found]
        busy = [status for status in up if status.busy]
        idle = any(not replica.status.busy and not replica.stalls for replica in found)
        sums = {name: sum(getattr(status, name) for status in up) for name in SUMS}
        counters = {name: self._past[name] + sum(getattr(s, name) for s in up) for name in COUNTERS}
        progress = max((status.last_progress for status in up), default=self._down_since)
        progress = time.monotonic() if idle else progress
        sums["waiting"] += waiting
        return EngineStatus(
            **sums,
            **counters,
            last_progress=progress,
            busy=bool(busy) or not up,
            device_adapters=tuple(dict.fromkeys(d for s in up for d in s.device_adapters)),
            host_adapters=tuple(dict.fromkeys(d for s in up for d in s.host_adapters)),
            flaws=tuple(self._flaws()),
        )

    def _flaws(self) -> Iterator[str]:
        for replica in self._replicas.values():
            if not replica.up and (replica.draining or not replica.problem):
                continue  # it leaves, or is starting
            if not replica.up:
                what = "is lost" if replica.losses else "does not start"
                yield f"replica {replica.name} {what}: {replica.problem}"
            elif replica.stalls:
                yield f"replica {replica.name} stalls: {replica.stalls}"
