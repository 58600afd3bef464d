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
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from router.engine.base import (
    MAX_POOLING,
    AdapterArtifact,
    BaseInfo,
    EngineStatus,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    check_pooling,
    tokens_before,
)
from router.engine.output import EventStream
from router.engine.tenant_cache import TenantCache
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
from router.replicas.members import Members, running_loop
from router.replicas.membership import FixedMembership, Membership
from router.replicas.messages import compile_, info_of, read
from router.replicas.placement import Placement
from router.replicas.replica import FleetReplica
from router.replicas.requests import MOVES, RoutedJob
from router.replicas.weights import LoadedAdapter, Weights
from router.types import Constraint, FinishReason
from router.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
KNOWN = 256  # constraints that are known to compile, of all tenants


class EdgeTokenizer(Protocol):
    """Prompts to tokens, at the edge: a base's tokenizer without its weights."""

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """As Engine.encode."""
        ...

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """As Engine.shared."""
        ...


@dataclass(frozen=True, slots=True)
class CheckedConstraint:
    """A constraint that a replica has compiled. A grammar stays in its process, so each replica makes one."""

    constraint: Constraint


class FleetEngine:
    """Implements `router.engine.base.Engine` over replicas."""

    def __init__(
        self,
        links: Sequence[Link] | Callable[[str], Link],
        encoder: Callable[[], EdgeTokenizer],
        *,
        max_running: int,
        max_queue: int,
        host_bytes: int = 2048 << 20,
        stall_seconds: float = 10.0,
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
            raise ConfigError("a fleet needs a replica: set replicas to 1 or more")
        self._replicas: dict[str, FleetReplica] = {}
        self._make_encoder = encoder
        self._encoder: EdgeTokenizer | None = None
        self._placement = Placement()
        self._using: Counter[tuple[str, str]] = Counter()  # jobs by adapter and replica
        self._weights = Weights(self._replicas, self._placement, host_bytes, self._using, shared)
        self._rows, self._queue = max_running, max_queue
        self._held: Counter[tuple[str, bool]] = Counter()  # jobs by replica and whether in the background
        self._waiting: set[RoutedJob] = set()  # for an adapter
        self._readings = 0
        self._known: TenantCache[Constraint, CheckedConstraint] = TenantCache(KNOWN)
        if callable(links):
            link, membership = links, membership or FixedMembership(("0",))
        else:
            named = {link.name: link for link in links}
            link, membership = named.__getitem__, FixedMembership(tuple(named))
        self.members = Members(
            membership,
            link,
            f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}",
            stall_seconds,
            self._weights,
            places=(max_running, max_queue),
            waiting=self._waiting,
        )
        self._info: BaseInfo | None = None

    # -- Engine

    @property
    def info(self) -> BaseInfo:
        """The base that all replicas have."""
        if self._info is None:
            raise NotLoaded("the base model is still loading")
        return self._info

    @property
    def replicas(self) -> Sequence[FleetReplica]:
        """All that this edge has something to do with, in the order in which they came."""
        return tuple(self._replicas.values())

    def start(self) -> None:
        """Start the first replicas at once; blocks. Raises ConfigError where none is up, and why."""
        try:
            self.members.begin()
            self._encoder = self._make_encoder()
            self._info = info_of(self.members.wait().base)
        except BaseException:
            self.members.close()
            raise

    def close(self) -> None:
        """End all replicas; running jobs end as CANCELLED."""
        loop, closed = self.members.loop, self.members.closed
        self.members.closed = True
        if loop is not None and not closed and not loop.is_closed():
            if running_loop() is loop:
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
        self.members.attach()
        return await self._weights.add(artifact)

    async def unload(self, digest: str) -> int:
        """Drop an adapter wherever it is."""
        if self.members.closed:  # it went with the replicas
            return 0
        self.members.attach()
        return await self._weights.remove(digest)

    async def compile(self, constraint: Constraint, tenant: str = "") -> CheckedConstraint:
        """Have a replica compile it; what a tenant had compiled once is known to compile for it."""
        self.members.attach()
        known = self._known.get(tenant, constraint)
        if known is None:
            await self._anywhere(lambda replica: replica.call(compile_(constraint, tenant)))
            known = CheckedConstraint(constraint)
            self._known.put(tenant, constraint, known)
        return known

    def submit(self, job: Job) -> EventStream:
        """Send a job to a replica that has its adapter and room for it."""
        self.members.attach()
        check_job(job, self.info.context_length)
        if job.adapter is not None:
            tokens_before(job.tokens, self._adapter(job.adapter).invocation)
        routed = RoutedJob(job, self._send, self._left)
        self._send(routed)
        return routed.stream

    async def read(self, reading: PoolingRequest) -> NDArray[np.float32]:
        """Done by one of the replicas."""
        self.members.attach()
        most = MAX_POOLING * (len(self._replicas) - 1)
        check_pooling(reading, self.info.context_length, self._readings - most)
        self._readings += 1
        try:
            event = await self._anywhere(lambda replica: replica.call(read(reading)))
            return np.frombuffer(event.numbers, "<f4")
        finally:
            self._readings -= 1

    def status(self) -> EngineStatus:
        """All replicas in one."""
        if self._info is None:
            return EngineStatus()
        if not self.members.closed and running_loop() is not None:
            self.members.attach()
        return self.members.status()

    async def _anywhere(
        self, ask: Callable[[FleetReplica], Coroutine[Any, Any, pb.EngineEvent]]
    ) -> pb.EngineEvent:
        """What one replica answers; another is asked if that one is lost or cannot now."""
        tried: set[str] = set()
        error = Unavailable("no replica is up")
        while len(tried) <= MOVES:
            up = {n: replica for n, replica in self._replicas.items() if replica.up and n not in tried}
            names = sorted(n for n, replica in up.items() if replica.takes)
            names = names or sorted(n for n, replica in up.items() if not replica.left)
            if not names:
                break
            name = self._placement.choose(names)
            tried.add(name)
            self._placement.begin(name)
            try:
                return await ask(self._replicas[name])
            except LinkLost as lost:
                error = Unavailable(f"{lost}: ask again")
            except Unavailable as refused:
                if self.members.closed:
                    raise
                error = refused
            finally:
                self._placement.end(name)
        raise error

    # -- jobs on their way

    def _adapter(self, digest: str) -> LoadedAdapter:
        kept = self._weights.get(digest)
        if kept is None:
            raise FailedPrecondition("the adapter is not loaded")
        return kept

    def _send(self, routed: RoutedJob) -> None:
        """On to a replica it has not tried. Raises Overloaded, Unavailable, FailedPrecondition."""
        job = routed.job
        room = self._with_room(job, routed.tried)
        if job.adapter is None:
            self._give(routed, self._placement.choose(room))
            return
        there = room & set(self._placement.homes(job.adapter))
        stays = there and (routed.waited or job.background)  # a request waits for one load, a shadow for none
        to = self._placement.choose(there if stays else room, job.adapter)
        if to in there:
            self._give(routed, to)
        else:
            self._wait(routed, self._send_once_there(routed, self._adapter(job.adapter), to, room))

    def _wait(self, routed: RoutedJob, loading: Coroutine[Any, Any, None]) -> None:
        """Until its adapter is where it goes."""
        task = self.members.spawn(loading)
        self._waiting.add(routed)
        routed.waits = task.cancel
        task.add_done_callback(lambda _: self._waiting.discard(routed))

    def _most(self, job: Job) -> int:
        return self._rows + (0 if job.background else self._queue)

    def _with_room(self, job: Job, tried: set[str]) -> set[str]:
        up = self._up(job.adapter)
        if not up - tried:
            raise Unavailable("no other replica is up" if up else "no replica is up")
        up = {name for name in up - tried if not self._replicas[name].stalls} or up - tried
        room = {name for name in up if self._held[name, job.background] < self._most(job)}
        if not room:
            raise Overloaded("the queues of all replicas are full", bound="replicas")
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
        self._placement.begin(name)
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
        self._placement.end(name)

    async def _send_once_there(self, routed: RoutedJob, kept: LoadedAdapter, to: str, room: set[str]) -> None:
        """Bring its adapter to that replica, or another with room where none has it, then send the job."""
        routed.waited = True
        homes = self._placement.homes(kept.digest)
        self._placement.begin(to)  # it counts there while it waits, or all others would go there, too
        error: RouterError | None = None
        try:
            async with asyncio.timeout_at(routed.job.deadline):
                await self._weights.bring(kept, {to} if homes else room, first=to, pushing=True)
        except TimeoutError:
            routed.waits = None
            routed.end(FinishReason.DEADLINE)
            return
        except ResourceExhausted as full:  # all that is there is in use
            error = Overloaded(full.message, bound="replicas")
        except RouterError as refused:
            error = refused
        finally:
            self._placement.end(to)
        routed.waits = None
        try:
            if error is not None and not self._placement.homes(kept.digest):
                raise error
            self._send(routed)
        except RouterError as refused:
            routed.fail(refused)

    # -- the end

    def _end_all(self) -> None:
        self.members.stop()
        for routed in tuple(self._waiting):
            routed.stop()
        for replica in self._replicas.values():
            pending, replica.pending = replica.pending, {}
            for receiver in pending.values():
                receiver.stop()

    def _at_the_edge(self) -> EdgeTokenizer:
        if self._encoder is None:
            raise NotLoaded("the base model is still loading")
        return self._encoder
