"""What an edge asks of replicas: jobs, readings and constraints, and of which replica if one is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.engine.base import MAX_POOLING, Delta, Finished, Job, PoolingRequest, check_pooling
from router.engine.fairness import TenantCache
from router.engine.output import EventStream
from router.errors import RouterError, Unavailable
from router.replicas.link import LinkLost
from router.replicas.messages import compile_, read, submit
from router.replicas.placement import Placement
from router.replicas.replica import Replica
from router.types import Constraint, FinishReason, Usage
from router.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

MOVES = 2  # to another replica; a job that ends every engine it meets must end itself
KNOWN = 256  # constraints that are known to compile, of all tenants


class RoutedJob:
    """A job that has sent no token goes on elsewhere when its replica is lost; one that has ends UNAVAILABLE.

    `stream` is what its caller reads. `on` sends it on its way again, and raises why that cannot be; `left`
    is called when it leaves its replica.
    """

    moves = True

    def __init__(self, job: Job, on: Callable[[RoutedJob], None], left: Callable[[RoutedJob], None]) -> None:
        """Raises InvalidRequest for a job that cannot travel."""
        self.job, self._on, self._left = job, on, left
        self._command = submit(0, job)
        self.stream = EventStream(lambda _: self.cancel(), lambda _: None)
        self.tried: set[str] = set()
        self.at: Replica | None = None
        self.waits: Callable[[], object] | None = None  # while it is at no replica: stops what it waits for
        self.beside = False  # it has looked for a free row beside its homes
        self.cancelled = False
        self._key = 0
        self._tokens = 0
        self._began = self._sent = time.monotonic()
        self._first = 0.0

    def go(self, replica: Replica) -> None:
        """To this replica."""
        self.at, self._sent = replica, time.monotonic()
        self.tried.add(replica.name)
        where = {"response_id": self.job.request_id, "replica": replica.name}
        log.debug("goes to a replica", extra={"fields": where})
        self._key = replica.ask(self, self._as)

    def _as(self, key: int) -> pb.EngineCommand:
        """The command, with the time that is left now."""
        self._command.key = key
        if self.job.deadline is not None:
            self._command.submit.seconds_left = self.job.deadline - time.monotonic()
        return self._command

    def cancel(self) -> None:
        """Its caller has left, which its replica confirms."""
        if self.cancelled or self.stream.ended:
            return
        self.cancelled = True
        if self.at is not None:
            self.at.cancel(self._key)
        else:
            self.end(FinishReason.CANCELLED)

    def put(self, what: Any) -> None:
        """Something came from its replica."""
        if isinstance(what, Delta):
            self._first = self._first or time.monotonic()
            self._tokens += what.tokens
            self.stream.put(what)
            return
        at = self.at.name if self.at is not None else ""
        self._leave()
        if isinstance(what, Finished) and what.reason is FinishReason.CANCELLED and not self.cancelled:
            self._elsewhere(Unavailable(f"replica {at} has stopped: ask again"))
        elif isinstance(what, Finished):
            self.stream.put(Finished(what.reason, self._usage(what.usage), what.stop))
        elif isinstance(what, Unavailable):
            self._elsewhere(what)
        else:
            self.stream.put(what)

    def lost(self, why: str) -> None:
        """Its replica is lost."""
        self._leave()
        self._elsewhere(Unavailable(f"{why}: ask again"))

    def end(self, reason: FinishReason) -> None:
        """Where no replica can say it any more."""
        self._leave()
        if not self.stream.ended:
            usage = Usage(prompt_tokens=len(self.job.tokens), completion_tokens=self._tokens)
            self.stream.put(Finished(reason, self._usage(usage)))

    def fail(self, error: RouterError) -> None:
        """It cannot go on."""
        self._leave()
        if not self.stream.ended:
            self.stream.put(error)

    def _elsewhere(self, error: Unavailable) -> None:
        if self.cancelled or self.job.background:
            self.end(FinishReason.CANCELLED)
        elif self._tokens:
            self.fail(Unavailable(f"{error.message} (the answer had begun)", error.retry_after))
        elif len(self.tried) > MOVES:
            self.fail(error)
        else:
            try:
                self._on(self)
            except RouterError as refused:
                self.fail(refused if not isinstance(refused, Unavailable) else error)

    def _leave(self) -> None:
        if self.waits is not None:
            stop, self.waits = self.waits, None
            stop()
        if self.at is not None:
            self._left(self)
            self.at = None

    def _usage(self, usage: Usage) -> Usage:
        """With times as they were at the edge, where the way is part of them."""
        now = time.monotonic()
        return Usage(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            queue_time=usage.queue_time + self._sent - self._began,
            time_to_first_token=(self._first or now) - self._began,
            total_time=now - self._began,
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """A constraint that a replica has compiled. A grammar stays in its process, so each replica makes one."""

    constraint: Constraint


class Calls:
    """Readings and constraints, which any replica does; another one if that one is lost or cannot now."""

    def __init__(self, replicas: Mapping[str, Replica], placement: Placement) -> None:
        self._replicas, self._placement = replicas, placement
        self._readings = 0
        self._known: TenantCache[Constraint, Checked] = TenantCache(KNOWN)
        self.closed = False

    async def read(self, reading: PoolingRequest, context_length: int) -> NDArray[np.float32]:
        """As Engine.read; those of one scope go to the same replica, which has their context in its cache."""
        most = MAX_POOLING * (len(self._replicas) - 1)
        check_pooling(reading, context_length, self._readings - most)
        self._readings += 1
        try:
            numbers: NDArray[np.float32] = await self._anywhere(
                lambda replica: replica.call(lambda key: read(key, reading)), reading.scope
            )
            return numbers
        finally:
            self._readings -= 1

    async def compile(self, constraint: Constraint, tenant: str = "") -> Checked:
        """As Engine.compile; what a tenant had compiled once is known to compile for it."""
        known = self._known.get(tenant, constraint)
        if known is None:
            await self._anywhere(lambda replica: replica.call(lambda key: compile_(key, constraint, tenant)))
            known = Checked(constraint)
            self._known.put(tenant, constraint, known)
        return known

    async def _anywhere(self, ask: Callable[[Replica], Coroutine[Any, Any, Any]], scope: int = 0) -> Any:
        """What one replica answers; another is asked if that one is lost or cannot now."""
        tried: set[str] = set()
        error = Unavailable("no replica is up")
        while len(tried) <= MOVES:
            up = {n: replica for n, replica in self._replicas.items() if replica.up and n not in tried}
            names = sorted(n for n, replica in up.items() if replica.takes)
            names = names or sorted(n for n, replica in up.items() if not replica.left)
            if not names:
                break
            name = names[scope % len(names)] if scope else self._placement.choose(names)
            tried.add(name)
            self._placement.begin(None, name, time.monotonic())
            try:
                return await ask(self._replicas[name])
            except LinkLost as lost:
                error = Unavailable(f"{lost}: ask again")
            except Unavailable as refused:
                if self.closed:
                    raise
                error = refused
            finally:
                self._placement.end(None, name, time.monotonic())
        raise error
