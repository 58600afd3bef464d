"""The replicas of one edge, as the roster wants them: who joins, who is emptied, who is let go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from router.errors import ConfigError, FailedPrecondition, RouterError
from router.fleet.crew import Crew, Member, MemberLoad, MemberState, Report, Roster
from router.fleet.link import Link, LinkLost
from router.fleet.messages import Hello
from router.fleet.placement import Placement
from router.fleet.replica import Replica, check_alike
from router.fleet.shelf import Kept, Shelf
from router.fleet.totals import Totals

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0  # between two reports, if nothing changes


class Members:
    """Reports to the crew and follows its roster. `replicas` are those of this edge by name, with draining
    ones.
    """

    def __init__(
        self, crew: Crew, link: Callable[[str], Link], edge: str, stall_seconds: float, fixed: bool = False
    ) -> None:
        """`link` gives the way to a replica by its name; `fixed`: it knows the first ones only."""
        self.crew, self._link, self._edge = crew, link, edge
        self._stall, self._fixed = stall_seconds, fixed
        self.replicas: dict[str, Replica] = {}
        self.roster = Roster(0, (), 0, 0)
        self._hello: Hello | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._silent = False  # the crew cannot be reached

    def serve(
        self,
        placement: Placement,
        shelf: Shelf,
        totals: Totals,
        places: tuple[int, int],
        jobs: Callable[[str], int],
        waiting: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        attach: Callable[[], None],
    ) -> None:
        """What replicas are for. Each has `places` for jobs that run and for jobs that wait; `jobs` counts
        those at a replica, `waiting` those that no replica has; `attach` has all begin on this event loop.
        """
        self._placement, self._shelf, self._totals = placement, shelf, totals
        self._rows, self._queue = places
        self._jobs, self._waiting, self._spawn, self._attached = jobs, waiting, spawn, attach

    # -- from start to end

    def start(self, meanwhile: Callable[[], Any]) -> tuple[Hello, Any]:
        """Have the least number of members up, and do something `meanwhile`; blocks. Returns what they say,
        and what came of it.

        Raises ConfigError naming one that does not start, or differs.
        """
        with ThreadPoolExecutor(1, "crew") as thread:
            self.roster = thread.submit(asyncio.run, self._reported()).result()
        serving = [m.name for m in self.roster.members if m.state is MemberState.SERVING]
        first = serving[: self.roster.least]
        for name in first:
            self.replicas[name] = Replica(self._link(name), self._edge, self._stall)
        with ThreadPoolExecutor(len(first), "replicas") as threads:
            starts = {name: threads.submit(replica.start) for name, replica in self.replicas.items()}
            try:
                made = meanwhile()
                hello = check_alike({name: _started(name, start) for name, start in starts.items()})
            except BaseException:
                list(threads.map(Replica.close, self.replicas.values()))
                raise
        self._hello = hello
        for name, replica in self.replicas.items():
            self._placement.join(name)
            replica.came, replica.went = self._came, self._went
        return hello, made

    def attach(self) -> None:
        """Follow replicas and roster on this event loop."""
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

    async def resize(self, least: int, most: int) -> Roster:
        """As Crew.resize; also raises FailedPrecondition."""
        self._begin_change()
        return self._changing(await self.crew.resize(least, most))

    async def replace(self, names: Sequence[str]) -> Roster:
        """As Crew.replace; also raises FailedPrecondition."""
        self._begin_change()
        return self._changing(await self.crew.replace(names))

    def _begin_change(self) -> None:
        self._attached()
        if self._fixed:
            raise FailedPrecondition("this fleet has the replicas that it was made of, and no others")

    def _changing(self, roster: Roster) -> Roster:
        self._changed.set()  # the next report is now, and its answer is followed
        return roster

    # -- reports up, rosters down

    async def _reported(self) -> Roster:
        loads = {name: self._load(replica) for name, replica in self.replicas.items()}
        return await self.crew.report(Report(self._edge, loads, self._waiting(), self._rows))

    def _load(self, replica: Replica) -> MemberLoad:
        jobs = self._jobs(replica.name)
        waiting = min(jobs, replica.status.waiting)
        return MemberLoad(replica.up, jobs - waiting, waiting, replica.problem, replica.failures)

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            try:
                self._apply(await self._reported())
            except RouterError as error:
                if not self._silent:
                    log.warning("the crew cannot be reached, so the fleet stays as it is: %s", error)
                self._silent = True
            except Exception:  # of a link, say: the rest of the fleet goes on
                log.exception("the roster cannot be followed")
            else:
                self._silent = False
            with suppress(TimeoutError):  # wait_for may swallow the end of an edge
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._changed.wait()

    def _apply(self, roster: Roster) -> None:
        self.roster = roster
        wanted = {member.name: member for member in roster.members}
        for name, member in wanted.items():
            if name not in self.replicas and member.state is MemberState.SERVING:
                self._join(name)
        for name, replica in tuple(self.replicas.items()):
            found = wanted.get(name, Member(name, MemberState.DRAINING))
            if found.state is MemberState.DRAINING and not replica.draining:
                replica.drain()
                self._placement.close(name)
                self._spawn(self._let_go(replica, found.heir))

    def _join(self, name: str) -> None:
        replica = self.replicas[name] = Replica(self._link(name), self._edge, self._stall, self._hello)
        replica.came, replica.went = self._came, self._went
        self._runs[name] = self._spawn(replica.run())

    def _came(self, replica: Replica) -> None:
        if not replica.draining:
            self._placement.join(replica.name)
            self._shelf.restore()
        self._changed.set()

    def _went(self, replica: Replica) -> None:
        self._totals.lost(replica)
        bereft = self._placement.leave(replica.name)
        log.info("replica %s was the only home of %d adapters", replica.name, len(bereft))
        self._shelf.restore()
        self._changed.set()

    # -- one that is draining

    async def _let_go(self, replica: Replica, heir: str) -> None:
        """Its adapters to others, the busiest first, which it serves until then; its jobs to their end."""
        name = replica.name
        for digest in self._placement.living(name, time.monotonic()):
            kept = self._shelf.get(digest)
            if kept is not None and replica.up:
                await self._rehome(kept, name, heir)
        self._placement.leave(name)
        self._shelf.restore()  # what came there meanwhile
        await replica.idle()
        replica.leave()
        await asyncio.wait((self._runs.pop(name),))
        self._placement.leave(name)
        self._totals.left(replica)
        del self.replicas[name]
        log.info("replica %s has been let go", name)
        self._changed.set()

    async def _rehome(self, kept: Kept, name: str, heir: str) -> None:
        def elsewhere() -> set[str]:
            return set(self._placement.homes(kept.digest)) - self._placement.closing

        if heir and heir not in elsewhere():
            await self._bring(kept, {heir})
        if not elsewhere():
            await self._bring(kept, None)
        if elsewhere():
            self._placement.unsettle(kept.digest, name)

    async def _bring(self, kept: Kept, among: set[str] | None) -> None:
        try:
            await self._shelf.bring(kept, among)
        except RouterError as error:
            to = f" to {', '.join(among)}" if among else ""
            log.warning("adapter %s cannot move%s: %s", kept.name, to, error)


def _started(name: str, start: Future[Hello]) -> Hello:
    try:
        return start.result()
    except (LinkLost, RouterError) as error:
        raise ConfigError(f"replica {name} does not start: {error}") from error
