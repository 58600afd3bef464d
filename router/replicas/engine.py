"""Many engines that look like one: `router.engine.base.Engine` over replicas of one base.

Each has its process, its device, its adapters. Requests go where few are and their adapter is.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Protocol, TypeVar

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
from router.errors import FailedPrecondition, NotLoaded, Overloaded, ResourceExhausted, Unavailable
from router.replicas.link import LinkLost
from router.replicas.members import Members, running_loop
from router.replicas.membership import Membership
from router.replicas.messages import compile_, info_of, load, read
from router.replicas.replica import FleetReplica
from router.replicas.requests import MOVES, RoutedJob
from router.types import Constraint
from router.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLOSE_SECONDS = 2.0
KNOWN = 256  # constraints that are known to compile, of all tenants
ABSENT = 8  # requests that may run or wait at a replica with the adapter before another one loads it


class Scored(Protocol):
    """What the choice of a replica looks at."""

    @property
    def held(self) -> int:
        """Requests that run or wait there."""
        ...

    @property
    def adapters(self) -> Collection[str]:
        """Digests of the adapters in its memory."""
        ...


Choice = TypeVar("Choice", bound=Scored)


def choose(among: Iterable[Choice], adapter: str | None = None) -> Choice:
    """The replica for a request: where fewest are held, ABSENT more where its adapter has to be loaded.

    Among equals one with few adapters if it has to load, else any; `among` is not empty.
    """

    def score(replica: Choice) -> tuple[int, int, float]:
        absent = adapter is not None and adapter not in replica.adapters
        return replica.held + ABSENT * absent, len(replica.adapters) * absent, random.random()

    return min(among, key=score)


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
class LoadedAdapter:
    """An adapter that requests may use; replicas load it when one comes."""

    load: pb.EngineCommand.Load
    invocation: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class CheckedConstraint:
    """A constraint that a replica has compiled. A grammar stays in its process, so each replica makes one."""

    constraint: Constraint


class FleetEngine:
    """Implements `router.engine.base.Engine` over replicas."""

    def __init__(
        self,
        membership: Membership,
        encoder: Callable[[], EdgeTokenizer],
        *,
        max_running: int,
        max_queue: int,
        stall_seconds: float = 10.0,
    ) -> None:
        """`membership` says which replicas there are. `encoder` is made at `start`; `max_running` and
        `max_queue` are those of each replica.

        A replica that is silent or makes no step for `stall_seconds` gets nothing new while there is another,
        and three times as long after its last sign it is ended and replaced.
        """
        self._make_encoder = encoder
        self._encoder: EdgeTokenizer | None = None
        self._rows, self._queue = max_running, max_queue
        self._adapters: dict[str, LoadedAdapter] = {}
        self._readings = 0
        self._known: TenantCache[Constraint, CheckedConstraint] = TenantCache(KNOWN)
        edge = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}"
        self.members = Members(membership, edge, stall_seconds, (max_running, max_queue))
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
        return tuple(self.members.replicas.values())

    def start(self) -> None:
        """Start the first replicas at once; blocks. Raises ConfigError where none is up, and why."""
        try:
            self._encoder = self._make_encoder()
            self._info = info_of(self.members.start().base)
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

    async def load(self, artifact: AdapterArtifact) -> int:
        """Have it in memory at one replica, and at others once requests go there."""
        self.members.attach()
        known = self._adapters.get(artifact.digest)
        if known is None:
            parts = [digest for digest, _ in artifact.parts if digest in self._adapters]
            folders = {digest: self._adapters[digest].load.folder for digest in parts}
            command = load(artifact, folders)
            event = await self._anywhere(pb.EngineCommand(load=command), artifact.digest)
            known = LoadedAdapter(command, artifact.invocation_tokens, event.size)
            self._adapters[artifact.digest] = known
        return known.size

    async def unload(self, digest: str) -> int:
        """Answer no request with it any more. Replicas drop it when they need its memory."""
        known = self._adapters.pop(digest, None)
        return 0 if known is None else known.size

    async def compile(self, constraint: Constraint, tenant: str = "") -> CheckedConstraint:
        """Have a replica compile it; what a tenant had compiled once is known to compile for it."""
        self.members.attach()
        known = self._known.get(tenant, constraint)
        if known is None:
            await self._anywhere(compile_(constraint, tenant))
            known = CheckedConstraint(constraint)
            self._known.put(tenant, constraint, known)
        return known

    def submit(self, job: Job) -> EventStream:
        """Send a job to a replica that has its adapter and room for it."""
        self.members.attach()
        check_job(job, self.info.context_length)
        load = None
        if job.adapter is not None:
            known = self._adapters.get(job.adapter)
            if known is None:
                raise FailedPrecondition("the adapter is not loaded")
            tokens_before(job.tokens, known.invocation)
            load = known.load
        routed = RoutedJob(job, load, self._send)
        self._send(routed)
        return routed.stream

    async def read(self, reading: PoolingRequest) -> NDArray[np.float32]:
        """Done by one of the replicas."""
        self.members.attach()
        most = MAX_POOLING * (len(self.members.replicas) - 1)
        check_pooling(reading, self.info.context_length, self._readings - most)
        self._readings += 1
        try:
            event = await self._anywhere(read(reading))
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

    async def _anywhere(self, command: pb.EngineCommand, adapter: str | None = None) -> pb.EngineEvent:
        """What one replica answers; another is asked if that one is lost or cannot now."""
        tried: set[str] = set()
        losses = 0
        error: Unavailable | ResourceExhausted = Unavailable("no replica is up")
        while losses <= MOVES and (takers := self._takers(tried)):
            replica = choose(takers, adapter)
            tried.add(replica.name)
            try:
                return await replica.call(command, adapter)
            except LinkLost as lost:
                losses += 1
                error = Unavailable(f"{lost}: ask again")
            except (Unavailable, ResourceExhausted) as refused:
                if self.members.closed:
                    raise
                error = refused
        raise error

    def _send(self, routed: RoutedJob) -> None:
        """On to a replica it has not tried. Raises Overloaded, Unavailable."""
        takers, background = self._takers(routed.tried), routed.job.background
        if not takers:
            raise Unavailable("no other replica is up" if routed.tried else "no replica is up")
        most = self._rows + (0 if background else self._queue)
        room = [replica for replica in takers if replica.jobs[background] < most]
        if not room:
            raise Overloaded("the queues of all replicas are full", bound="replicas")
        routed.go(choose(room, routed.job.adapter))

    def _takers(self, tried: Collection[str]) -> list[FleetReplica]:
        """Who may get something: those that are well, else those that stall, else those that drain."""
        up = [replica for replica in self.replicas if replica.up and replica.name not in tried]
        stay = [replica for replica in up if not replica.draining]
        return [replica for replica in stay if not replica.stalls] or stay or up

    # -- the end

    def _end_all(self) -> None:
        self.members.stop()
        for replica in self.replicas:
            pending, replica.pending = replica.pending, {}
            for receiver in pending.values():
                receiver.stop()

    def _at_the_edge(self) -> EdgeTokenizer:
        if self._encoder is None:
            raise NotLoaded("the base model is still loading")
        return self._encoder
