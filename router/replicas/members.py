"""The replicas of one edge, as its membership names them: who joins, who is emptied, who is let go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
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
from router.replicas.replica import FleetReplica
from router.replicas.weights import Weights
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at which replicas there are
FIND_SECONDS = 600.0  # until one replica that others start is up
RETRY_SECONDS = 0.5  # between two tries to reach one
MOMENT_SECONDS = 1.0  # for the others, once one is up
SUMS = (
    *("running", "waiting", "reading", "background", "cache_blocks", "cache_blocks_free", "slots"),
    "host_bytes",
)
COUNTERS = ("steps", "preemptions", "background_dropped", "prefix_hit_tokens", "prefix_query_tokens")


class Members:
    """Starts replicas and follows the membership, on one event loop."""

    def __init__(
        self,
        membership: Membership,
        link: Callable[[str], Link],
        edge: str,
        stall_seconds: float,
        weights: Weights,
        *,
        places: tuple[int, int],
        waiting: Collection[object],
    ) -> None:
        """`link` gives the way to a replica by its name. Each has `places` for jobs that run and that wait;
        `waiting` are those that no replica has.
        """
        self.membership, self._link, self._edge = membership, link, edge
        self._stall, self._weights = stall_seconds, weights
        self.replicas, self._placement = weights.replicas, weights.placement
        self._rows, self._queue = places
        self._waiting = waiting
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self._hello: pb.HelloResponse | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._results: SimpleQueue[tuple[str, pb.HelloResponse | Exception]] = SimpleQueue()
        self._over = Event()  # no first start is tried again
        self._past: Counter[str] = Counter()  # what lost replicas had counted
        self._down_since = time.monotonic()

    # -- from start to end

    def begin(self) -> None:
        """Start the first replicas, each in a thread; where others start them, try until they are there.

        Blocks until it is known which they are. Raises ConfigError where none is found.
        """
        end = time.monotonic() + FIND_SECONDS
        while True:
            with ThreadPoolExecutor(1, "membership") as thread:
                names = thread.submit(asyncio.run, self.membership.names()).result()
            if names:
                break
            if time.monotonic() > end:
                raise ConfigError(f"no replica was found in {FIND_SECONDS:g} s")
            time.sleep(RETRY_SECONDS)
        links = [self._link(name) for name in names]
        self.replicas.update({link.name: self._replica(link) for link in links})
        for link in links:
            Thread(target=self._start_link, args=(link,), name=f"replica {link.name}", daemon=True).start()

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

    def wait(self) -> pb.HelloResponse:
        """Block until each is up or fails; where others start them until one is up, and a moment for the
        rest. Returns what those that are up have in common.

        One that fails, or is not like most, is tried again later. Raises ConfigError where none is up.
        """
        hellos, failed = self._first_results()
        self._over.set()
        for name, error in failed.items():
            if not hellos:
                raise ConfigError(f"replica {name} does not start: {error}") from error
        in_order = {name: hellos[name] for name in self.replicas if name in hellos}
        self._hello, others = fleet_of(in_order)
        for name, problem in ({name: str(error) for name, error in failed.items()} | others).items():
            log.error("replica %s cannot be one of this fleet: %s", name, problem)
            self.replicas[name].problem = problem
        for name, replica in self.replicas.items():
            replica.expect(self._hello, up=name in hellos and name not in others)
            if replica.up:
                self._placement.join(name)
        return self._hello

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

    def _replica(self, link: Link) -> FleetReplica:
        return FleetReplica(link, self._edge, self._stall, self, self._hello)

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
                self._runs[replica.name] = self.spawn(replica.run())
            self.spawn(self._follow())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that `stop` ends; an error that it raises is logged."""
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
        self._weights.close()

    def close(self) -> None:
        """End them all; blocks."""
        self._over.set()
        with ThreadPoolExecutor(max(1, len(self.replicas)), "replicas") as threads:
            list(threads.map(FleetReplica.close, tuple(self.replicas.values())))

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
        if not any(other.takes for other in self.replicas.values() if other is not replica):
            raise Unavailable("no other replica is up: drain this one when another is")
        try:
            await replica.call(pb.EngineCommand(drain=pb.EngineCommand.Drain()))
        except LinkLost as lost:
            raise Unavailable(str(lost)) from None

    # -- who comes and goes

    async def _follow(self) -> None:
        while True:
            try:
                self._apply(await self.membership.names())
            except Exception:  # of a link, say: the rest goes on
                log.exception("the replicas cannot be followed")
            await asyncio.sleep(LOOK_SECONDS)

    def _apply(self, names: Collection[str]) -> None:
        for name in names:
            if name not in self.replicas:
                self._join(name)
        for name, replica in tuple(self.replicas.items()):
            if name not in names and not replica.draining:
                replica.drain()
                self.spawn(self._let_go(replica))

    def _join(self, name: str) -> None:
        replica = self.replicas[name] = self._replica(self._link(name))
        self._runs[name] = self.spawn(replica.run())

    # -- what replicas report

    def came(self, replica: FleetReplica) -> None:
        """It is up again."""
        if not replica.draining:
            self._placement.join(replica.name)
            self._weights.restore()

    def went(self, replica: FleetReplica) -> None:
        """It is down. Its jobs are moved or ended afterwards."""
        self._count_past(replica)  # the next one in its place counts from 0
        self._down_since = time.monotonic()
        homeless = self._placement.leave(replica.name)
        log.info("replica %s was the only home of %d adapters", replica.name, len(homeless))
        self._weights.restore()

    def stalled(self, replica: FleetReplica) -> None:
        """Its jobs go elsewhere, where there is a replica that is well."""
        if any(other.takes and not other.stalls for other in self.replicas.values()):
            replica.abandon()

    def ends(self, replica: FleetReplica) -> None:
        """It takes nothing new and ends itself: empty it, so that it can."""
        if not replica.draining:
            log.info("replica %s drains, and ends when nothing is left", replica.name)
            self.spawn(self._empty(replica))

    # -- one that is draining

    async def _empty(self, replica: FleetReplica) -> None:
        """Its adapters to others, the busiest first; then it releases all that it holds for this edge."""
        await self._rehome(replica)
        await replica.idle()
        if replica.ending:
            replica.detach()

    async def _let_go(self, replica: FleetReplica) -> None:
        """Its adapters to others, the busiest first, which it serves until then; its jobs to their end.

        One that is not up is ended at once, so that nobody waits for its start, and again afterwards.
        """
        name = replica.name
        if not replica.up:
            await self._end(replica)
        await self._rehome(replica)
        self._placement.leave(name)
        self._weights.restore()  # what came there meanwhile
        await replica.idle()
        replica.leave()
        await asyncio.wait((self._runs.pop(name),))
        await self._end(replica)
        self._placement.leave(name)
        self._count_past(replica)
        del self.replicas[name]
        log.info("replica %s has been let go", name)

    async def _end(self, replica: FleetReplica) -> None:
        """End its process, unless somebody else has started it."""
        try:
            await asyncio.to_thread(replica.close)
        except Exception:  # whatever a link raises: the fleet goes on without it
            log.exception("replica %s could not be ended", replica.name)

    async def _rehome(self, replica: FleetReplica) -> None:
        """Each adapter that is only there, or only where replicas drain, to another one."""
        for digest in self._placement.living(replica.name):
            kept = self._weights.get(digest)
            if kept is None or not replica.up:
                continue
            others = (self.replicas[name] for name in self._placement.homes(digest))
            try:
                if not any(other.takes for other in others):
                    await self._weights.bring(kept)
                self._placement.unsettle(digest, replica.name)
            except RouterError as error:
                log.warning("adapter %s cannot move: %s", kept.name, error)

    # -- the status of all in one, for health, metrics and admission

    def status(self) -> EngineStatus:
        """All make progress while one replica does, or is idle and answers: one that hangs gets nothing new.

        With none up, they are busy, and their last progress was when the last one went. Counters never go
        back: what a replica had counted when it was lost stays in the sum.
        """
        found = [replica for replica in self.replicas.values() if replica.up]
        up = [replica.status for replica in found]
        sums = {name: sum(getattr(status, name) for status in up) for name in SUMS}
        sums |= {name: self._past[name] + sum(getattr(s, name) for s in up) for name in COUNTERS}
        sums["waiting"] += len(self._waiting)
        progress = max((status.last_progress for status in up), default=self._down_since)
        if any(not replica.status.busy and not replica.stalls for replica in found):
            progress = time.monotonic()
        return EngineStatus(
            **sums,
            last_progress=progress,
            busy=not up or any(status.busy for status in up),
            device_adapters=tuple(dict.fromkeys(d for s in up for d in s.device_adapters)),
            host_adapters=tuple(dict.fromkeys(d for s in up for d in s.host_adapters)),
            flaws=tuple(self._flaws()),
        )

    def _count_past(self, replica: FleetReplica) -> None:
        for name in COUNTERS:
            self._past[name] += getattr(replica.status, name)
        replica.status = EngineStatus()

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
