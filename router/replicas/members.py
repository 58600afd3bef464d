"""The replicas of one edge, as its membership names them: who joins, who drains, who leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from router.engine.base import EngineStatus
from router.errors import ConfigError, NotFound, NotLoaded, RouterError, Unavailable
from router.replicas.link import Link, LinkLost
from router.replicas.membership import Membership
from router.replicas.messages import fleet_of
from router.replicas.replica import COUNTERS, FleetReplica
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at which replicas there are, and which stall
FIND_SECONDS = 600.0  # until one replica that others start is up
RETRY_SECONDS = 0.5  # between two tries to reach one
MOMENT_SECONDS = 1.0  # for the others, once one is up
SUMS = (
    *("running", "waiting", "reading", "background", "cache_blocks", "cache_blocks_free", "slots"),
    "host_bytes",
)


class Members:
    """Starts replicas and follows the membership, on one event loop."""

    def __init__(
        self, membership: Membership, edge: str, stall_seconds: float, places: tuple[int, int]
    ) -> None:
        """Each replica has `places` for jobs that run and that wait."""
        self.membership, self._edge, self._stall = membership, edge, stall_seconds
        self._rows, self._queue = places
        self.replicas: dict[str, FleetReplica] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self._hello: pb.HelloResponse | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._results: SimpleQueue[tuple[str, pb.HelloResponse | Exception]] = SimpleQueue()
        self._over = Event()  # no first start is tried again
        self._past: Counter[str] = Counter()  # what replicas that left had counted

    # -- from start to end

    def start(self) -> pb.HelloResponse:
        """Block until each replica is up or fails; where others start them until one is up, and a moment for
        the rest. Returns what those that are up have in common.

        One that fails, or is not like most, is tried again later. Raises ConfigError where none is up.
        """
        links = [self.membership.link(name) for name in self._first_names()]
        self.replicas.update({link.name: FleetReplica(link, self._edge, self._stall) for link in links})
        for link in links:
            Thread(target=self._start_link, args=(link,), name=f"replica {link.name}", daemon=True).start()
        hellos, failed = self._first_results()
        self._over.set()
        for name, error in failed.items():
            if not hellos:
                raise ConfigError(f"replica {name} does not start: {error}") from error
        self._hello, others = fleet_of({name: hellos[name] for name in self.replicas if name in hellos})
        for name, problem in ({name: str(error) for name, error in failed.items()} | others).items():
            log.error("replica %s cannot be one of this fleet: %s", name, problem)
            self.replicas[name].problem = problem
        for name, replica in self.replicas.items():
            replica.expect(self._hello, up=name in hellos and name not in others)
        return self._hello

    def _first_names(self) -> Collection[str]:
        end = time.monotonic() + FIND_SECONDS
        while True:
            with ThreadPoolExecutor(1, "membership") as thread:
                names = thread.submit(asyncio.run, self.membership.names()).result()
            if names:
                return names
            if time.monotonic() > end:
                raise ConfigError(f"no replica was found in {FIND_SECONDS:g} s")
            time.sleep(RETRY_SECONDS)

    def _start_link(self, link: Link) -> None:
        while True:
            try:
                self._results.put((link.name, link.start()))
                return
            except (LinkLost, RouterError) as error:
                self.replicas[link.name].problem = str(error)
                if not self.membership.found or isinstance(error, ConfigError):
                    self._results.put((link.name, error))
                    return
            if self._over.wait(RETRY_SECONDS):
                return

    def _first_results(self) -> tuple[dict[str, pb.HelloResponse], dict[str, Exception]]:
        """Which first starts succeeded, and which failed."""
        hellos: dict[str, pb.HelloResponse] = {}
        failed: dict[str, Exception] = {}
        seconds = FIND_SECONDS if self.membership.found else None
        while len(hellos) + len(failed) < len(self.replicas):
            try:
                name, result = self._results.get(timeout=seconds)
            except Empty:
                if hellos:
                    break
                why = "; ".join(f"{name}: {replica.problem}" for name, replica in self.replicas.items())
                raise ConfigError(f"no replica is up after {FIND_SECONDS:g} s: {why}") from None
            if isinstance(result, Exception):
                failed[name] = result
                continue
            hellos[name] = result
            if self.membership.found:
                seconds = MOMENT_SECONDS
        return hellos, failed

    def attach(self) -> None:
        """Follow replicas and membership on this event loop, from the first call on.

        Raises Unavailable after the end, NotLoaded before the replicas are up.
        """
        if self.closed:
            raise Unavailable("the engine has stopped")
        if self._hello is None:
            raise NotLoaded("the base model is still loading")
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            for replica in self.replicas.values():
                self._runs[replica.name] = self._spawn(replica.run())
            self._spawn(self._follow())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the fleet ended", exc_info=error)

    def stop(self) -> None:
        """Follow nothing any more. Called on the event loop."""
        for task in tuple(self._tasks):
            task.cancel()

    def close(self) -> None:
        """End them all; blocks."""
        self._over.set()
        with ThreadPoolExecutor(max(1, len(self.replicas)), "replicas") as threads:
            list(threads.map(FleetReplica.close, tuple(self.replicas.values())))

    # -- who comes and goes

    async def _follow(self) -> None:
        while True:
            try:
                self._apply(await self.membership.names())
            except Exception:  # of a link, say: the rest goes on
                log.exception("the replicas cannot be followed")
            self._relieve()
            await asyncio.sleep(LOOK_SECONDS)

    def _apply(self, names: Collection[str]) -> None:
        for name in names:
            if name not in self.replicas:
                replica = FleetReplica(self.membership.link(name), self._edge, self._stall, self._hello)
                self.replicas[name] = replica
                self._runs[name] = self._spawn(replica.run())
        for name, replica in tuple(self.replicas.items()):
            if name not in names and not replica.removed:
                replica.remove()
                self._spawn(self._let_go(replica))

    async def _let_go(self, replica: FleetReplica) -> None:
        """Its jobs to their end, then its stream; what started it ends it."""
        await replica.idle()
        self._past.update(replica.counted())
        del self.replicas[replica.name]
        self._runs.pop(replica.name).cancel()
        log.info("replica %s has been let go", replica.name)

    def _relieve(self) -> None:
        """Jobs of replicas that stall go elsewhere, where there is a replica that is well."""
        if any(
            replica.up and not replica.draining and not replica.stalls for replica in self.replicas.values()
        ):
            for replica in self.replicas.values():
                if replica.stalls:
                    replica.abandon()

    # -- what operators and admission ask

    def places(self) -> tuple[int, int]:
        """Jobs that those that are up can run, and can run or let wait; never less than one replica's."""
        up = max(1, sum(replica.up for replica in self.replicas.values()))
        return up * self._rows, up * (self._rows + self._queue)

    async def drain(self, name: str) -> None:
        """Have a replica end what it has and end itself; what started it starts it again.

        Raises NotFound, Unavailable.
        """
        self.attach()
        replica = self.replicas.get(name)
        if replica is None:
            raise NotFound("replica", name, f": there are {', '.join(self.replicas) or 'none'}")
        if not replica.up:
            raise Unavailable(f"replica {name} is not up")
        others = [other for other in self.replicas.values() if other is not replica]
        if not any(other.up and not other.draining for other in others):
            raise Unavailable("no other replica is up: drain this one when another is")
        try:
            await replica.call(pb.EngineCommand(drain=pb.EngineCommand.Drain()))
        except LinkLost as lost:
            raise Unavailable(str(lost)) from None

    def status(self) -> EngineStatus:
        """All in one, for health, metrics and admission. They make progress while one replica does, or is
        idle and answers: one that hangs gets nothing new.

        With none up, they are busy, and their last progress was when the last one went. Counters never go
        back: what a replica had counted when it was lost stays in the sum.
        """
        all_ = self.replicas.values()
        found = [replica for replica in all_ if replica.up]
        up = [replica.status for replica in found]
        values: dict[str, Any] = {name: sum(getattr(status, name) for status in up) for name in SUMS}
        counted = sum((replica.counted() for replica in all_), self._past)
        values |= {name: counted[name] for name in COUNTERS}
        lost_at = max((replica.lost_at for replica in all_), default=0.0)
        progress = max((status.last_progress for status in up), default=lost_at)
        if any(not replica.status.busy and not replica.stalls for replica in found):
            progress = time.monotonic()
        return EngineStatus(
            **values,
            last_progress=progress,
            busy=not up or any(status.busy for status in up),
            device_adapters=tuple(dict.fromkeys(d for s in up for d in s.device_adapters)),
            host_adapters=tuple(dict.fromkeys(d for s in up for d in s.host_adapters)),
            flaws=tuple(self._flaws()),
        )

    def _flaws(self) -> Iterator[str]:
        for replica in self.replicas.values():
            if not replica.up and (replica.draining or not replica.problem):
                continue  # it leaves, or is starting
            if not replica.up:
                what = "is lost" if replica.losses else "does not start"
                yield f"replica {replica.name} {what}: {replica.problem}"
            elif replica.stalls:
                yield f"replica {replica.name} stalls: {replica.stalls}"


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if there is one."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
