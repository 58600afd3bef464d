"""Many engines that look like one: `router.engine.base.Engine` over replicas of one base.

Each has its process, its device, its slots. Requests go where their adapter is and the queue is short.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    EngineStatus,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    tokens_before,
)
from router.engine.output import EventStream
from router.errors import (
    ConfigError,
    FailedPrecondition,
    NotLoaded,
    Overloaded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.replicas.link import Link, LinkLost
from router.replicas.members import Members
from router.replicas.membership import FixedMembership, Membership
from router.replicas.messages import Hello
from router.replicas.owned import OwnedMembership
from router.replicas.placement import Move, Placement
from router.replicas.replica import Replica
from router.replicas.requests import Calls, Checked, RoutedJob
from router.replicas.weights import LoadedAdapter, Weights
from router.types import Constraint, FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at who lives where
CLOSE_SECONDS = 2.0


class Encoder(Protocol):
    """Prompts to tokens, at the edge: a base's tokenizer without its weights."""

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """As Engine.encode."""
        ...

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """As Engine.shared."""
        ...


class FleetEngine:
    """Implements `router.engine.base.Engine` over replicas."""

    def __init__(
        self,
        links: Sequence[Link] | Callable[[str], Link],
        encoder: Callable[[], Encoder],
        *,
        max_running: int,
        max_queue: int,
        host_bytes: int = 2048 << 20,
        stall_seconds: float = 10.0,
        placement: Placement | None = None,
        membership: Membership | None = None,
        shared: bool = False,
    ) -> None:
        """`links` are the replicas, which are and stay those, or make one of a name; then `membership`
        decides which there are. `shared`: other edges use them, too. `encoder` is made at `start`;
        `max_running`, `max_queue` and `host_bytes`, of adapters' weights, are those of each replica.

        A replica that is silent or makes no step for `stall_seconds` gets nothing new while there is another,
        and three times as long after its last sign it is ended and replaced.
        """
        if not links:
            raise ConfigError("a fleet needs a replica: say --replicas 1 or more")
        self._replicas: dict[str, Replica] = {}
        self._make_encoder = encoder
        self._encoder: Encoder | None = None
        self._placement = placement or Placement()
        self._placement.rows = max_running
        self._using: Counter[tuple[str, str]] = Counter()  # jobs by adapter and replica
        self._weights = Weights(self._replicas, self._placement, host_bytes, self._uses, shared)
        self._calls = Calls(self._replicas, self._placement)
        self._rows, self._queue = max_running, max_queue
        self._held: Counter[tuple[str, bool]] = Counter()  # jobs by replica and whether in the background
        self._waiting: set[RoutedJob] = set()  # for an adapter
        if callable(links):
            link, membership = links, membership or OwnedMembership(1)
        else:
            named = {link.name: link for link in links}
            link, membership = named.__getitem__, FixedMembership(tuple(named))
        self.members = Members(
            membership,
            link,
            f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}",
            stall_seconds,
            self._replicas,
            self._placement,
            self._weights,
            places=(max_running, max_queue),
            jobs=lambda name: self._held[name, False],
            waiting=lambda: len(self._waiting),
            spawn=self._spawn,
            attach=self._attach,
        )
        self._hello: Hello | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- Engine

    @property
    def info(self) -> BaseInfo:
        """The base that all replicas have."""
        if self._hello is None:
            raise NotLoaded("the base model is still loading")
        return self._hello.info

    @property
    def replicas(self) -> Sequence[Replica]:
        """All that this edge has something to do with, in the order in which they came."""
        return tuple(self._replicas.values())

    def start(self) -> None:
        """Start the first replicas at once; blocks. Raises ConfigError naming one that fails or differs."""
        self._hello, self._encoder = self.members.start(self._make_encoder)

    def close(self) -> None:
        """End all replicas; running jobs end as CANCELLED."""
        self._closed = self._calls.closed = True
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            if _running() is loop:
                self._end_all()
            else:
                done = Event()
                loop.call_soon_threadsafe(self._end_all)
                loop.call_soon_threadsafe(done.set)
                done.wait(CLOSE_SECONDS)
        self.members.close()

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """Token ids, made here."""
        return self._at_the_edge().encode(prompt, most, check)

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` every prompt under its template begins with."""
        return self._at_the_edge().shared(prompt, tokens)

    def pin(self, pinned: Callable[[str], bool]) -> None:
        """Which adapters must not wait: they stay where they are, though others are asked for more."""
        self._weights.pinned = pinned

    async def load(self, artifact: AdapterArtifact) -> int:
        """Put the weights down for all, and have them at one replica."""
        self._attach()
        return await self._weights.add(artifact)

    async def unload(self, digest: str) -> int:
        """Drop an adapter wherever it is."""
        if self._closed:  # it went with the replicas
            return 0
        self._attach()
        return await self._weights.remove(digest)

    async def compile(self, constraint: Constraint, tenant: str = "") -> Checked:
        """Whether replicas can follow it, which one of them tries. Each makes a grammar of its own of it."""
        self._attach()
        return await self._calls.compile(constraint, tenant)

    def submit(self, job: Job) -> EventStream:
        """Send a job to a replica that has its adapter and room for it."""
        self._attach()
        self._check(job)
        routed = RoutedJob(job, self._send, self._left)
        self._send(routed)
        return routed.stream

    async def read(self, reading: PoolingRequest) -> NDArray[np.float32]:
        """Done by a replica; those of one scope by the same, which has their context in its cache."""
        self._attach()
        return await self._calls.read(reading, self.info.context_length)

    def status(self) -> EngineStatus:
        """All replicas in one."""
        if self._hello is None:
            return EngineStatus()
        if not self._closed and _running() is not None:
            self._attach()
        return self.members.totals.status(len(self._waiting))

    # -- jobs on their way

    def _check(self, job: Job) -> None:
        """What can be refused here. Raises what Engine.submit raises."""
        check_job(job, self.info.context_length)
        if job.adapter is not None:
            tokens_before(job.tokens, self._adapter(job.adapter).invocation)

    def _adapter(self, digest: str) -> LoadedAdapter:
        kept = self._weights.get(digest)
        if kept is None:
            raise FailedPrecondition("the adapter is not loaded")
        return kept

    def _send(self, routed: RoutedJob) -> None:
        """On to a replica it has not tried. Raises Overloaded, Unavailable, FailedPrecondition."""
        job = routed.job
        there = self._near(job, routed.tried)
        if not there:
            room = self._with_room(job, routed.tried)
            there = room if job.adapter is None else room & set(self._placement.homes(job.adapter))
        if not there:
            self._wait(routed, self._send_once_there(routed, self._adapter(job.adapter or ""), room))
        elif beside := self._beside(routed, there):
            self._wait(routed, self._send_beside(routed, self._adapter(job.adapter or ""), beside))
        else:
            self._give(routed, self._placement.choose(there))

    def _wait(self, routed: RoutedJob, loading: Coroutine[Any, Any, None]) -> None:
        """Until its adapter is where it goes."""
        task = self._spawn(loading)
        self._waiting.add(routed)
        routed.waits = task.cancel
        task.add_done_callback(lambda _: self._waiting.discard(routed))

    def _near(self, job: Job, tried: set[str]) -> set[str]:
        """Where it can go, without a look at all replicas, which may be a thousand: its adapter's homes, or
        two that are drawn. Empty where more must be looked at.
        """
        most = self._most(job)

        def good(name: str) -> bool:
            replica = self._replicas[name]
            well = replica.up and not replica.stalls and self._held[name, job.background] < most
            return well and name not in tried and (job.adapter is not None or replica.takes)

        if job.adapter is not None:
            return {name for name in self._placement.homes(job.adapter) if good(name)}
        pair = self._placement.drawn()
        return set(pair) if pair and all(map(good, pair)) else set()

    def _beside(self, routed: RoutedJob, homes: set[str]) -> str:
        """A replica with a free row where its homes have none; "" where it waits at its homes."""
        if routed.job.adapter is None or routed.job.background or routed.beside:
            return ""
        name = self._placement.overflow(homes)
        replica = self._replicas.get(name)
        return name if replica is not None and replica.takes and not replica.stalls else ""

    def _most(self, job: Job) -> int:
        return self._rows + (0 if job.background else self._queue)

    def _with_room(self, job: Job, tried: set[str]) -> set[str]:
        up = self._up(job.adapter)
        if not up - tried:
            raise Unavailable("no other replica is up" if up else "no replica is up")
        up = {name for name in up - tried if not self._replicas[name].stalls} or up - tried
        room = {name for name in up if self._held[name, job.background] < self._most(job)}
        if not room:
            raise Overloaded("the queues of all replicas are full")
        return room

    def _up(self, adapter: str | None) -> set[str]:
        """Who may get a job: one that is draining only if it has the adapter, or if there is no other."""
        homes = self._placement.homes(adapter) if adapter is not None else ()
        taking = {n for n, replica in self._replicas.items() if replica.takes or (replica.up and n in homes)}
        return taking or {name for name, replica in self._replicas.items() if replica.up and not replica.left}

    def _give(self, routed: RoutedJob, name: str) -> None:
        job = routed.job
        self._held[name, job.background] += 1
        if job.adapter is not None:
            self._using[job.adapter, name] += 1
            self._adapter(job.adapter).asked = time.monotonic()
        self._placement.begin(job.adapter, name, time.monotonic())
        routed.go(self._replicas[name])

    def _left(self, routed: RoutedJob) -> None:
        if routed.at is None:
            return
        job, name = routed.job, routed.at.name
        self._held[name, job.background] -= 1
        if job.adapter is not None:
            self._using[job.adapter, name] -= 1
            if not self._using[job.adapter, name]:
                del self._using[job.adapter, name]
        self._placement.end(job.adapter, name, time.monotonic())

    async def _send_once_there(self, routed: RoutedJob, kept: LoadedAdapter, room: set[str]) -> None:
        """Bring its adapter to one of those with room, then send it there."""
        late = routed.job.deadline
        try:
            async with asyncio.timeout_at(late):
                await self._weights.bring(kept, room, pushing=True)
            routed.waits = None
            self._send(routed)
        except TimeoutError:
            routed.waits = None
            routed.end(FinishReason.DEADLINE)
        except ResourceExhausted as error:  # all that is there is in use
            routed.waits = None
            routed.fail(Overloaded(error.message))
        except RouterError as error:
            routed.waits = None
            routed.fail(error)

    async def _send_beside(self, routed: RoutedJob, kept: LoadedAdapter, to: str) -> None:
        """Bring its adapter to one more replica, then send it where fewest wait. It looks no third time."""
        routed.beside = True
        self._placement.held[to] += 1  # it counts there while it waits, or all others would go there, too
        try:
            async with asyncio.timeout_at(routed.job.deadline):
                await self._weights.bring(kept, {to}, pushing=True)
        except (RouterError, TimeoutError) as error:  # its homes have it still
            log.debug("adapter %s cannot be at %s, too: %s", kept.name, to, error)
        finally:
            if to in self._placement.replicas:
                self._placement.held[to] -= 1
        routed.waits = None
        try:
            self._send(routed)
        except RouterError as error:
            routed.fail(error)

    # -- the fleet

    def _attach(self) -> None:
        """Follow the replicas on this event loop, from the first call on that has one."""
        if self._closed:
            raise Unavailable("the engine has stopped")
        if self._hello is None:
            raise NotLoaded("the base model is still loading")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self.members.attach()
            self._spawn(self._follow())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the fleet ended", exc_info=error)

    async def _follow(self) -> None:
        """Adapters move as their load does."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for move in self._placement.plan(time.monotonic()):
                await self._move(move)

    async def _move(self, move: Move) -> None:
        kept = self._weights.get(move.digest)
        if kept is None:
            return
        try:
            to = self._replicas.get(move.to)
            if to is not None and to.takes and self._weights.make_room(kept, move.to, pushing=True):
                await self._weights.load(kept, move.to)
        except (LinkLost, RouterError) as error:
            log.warning("adapter %s could not move to %s: %s", kept.name, move.to, error)
            return
        others = set(self._placement.homes(move.digest)) - {move.away}
        if move.away and others and not self._uses(move.digest, move.away):
            self._weights.drop(move.digest, move.away)

    def _uses(self, digest: str, name: str) -> bool:
        return (digest, name) in self._using

    def _end_all(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        self._weights.close()
        for routed in tuple(self._waiting):
            routed.end(FinishReason.CANCELLED)
        for replica in self._replicas.values():
            pending, replica.pending = replica.pending, {}
            for receiver in pending.values():
                if isinstance(receiver, RoutedJob):
                    receiver.end(FinishReason.CANCELLED)
                else:
                    receiver.put(Unavailable("the engine has stopped"))

    def _at_the_edge(self) -> Encoder:
        if self._encoder is None:
            raise NotLoaded("the base model is still loading")
        return self._encoder


def _running() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
