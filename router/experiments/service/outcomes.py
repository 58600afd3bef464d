"""Outcomes over gRPC: checked in a thread, recorded in order, acknowledged when they are durable.

Threads of their own wait for the database, so that neither the event loop nor other threads do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from router.access.access import may_be_of
from router.access.quotas import UsageMeter
from router.errors import (
    ExperimentNotFound,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from router.experiments.management.plans import Declared
from router.experiments.model import Accepted, Experiment, Outcome
from router.experiments.visibility import Visibility
from router.experiments.wire.outcomes import STATUSES, outcome_of
from router.v1 import experiments_pb2 as pb

MAX_BATCHES = 16  # of all streams, at once
FULL_SECONDS = 0.1
NO_RESPONSE = (
    ": no experiment was exposed in it; where that is still being written, the outcome counts by itself, "
    "and the same key tells"
)
FULL = "as many outcomes wait for their response or unit as may (max_waiting_outcomes)"
FULL_RETRY = 60.0  # seconds
NOBODYS = "-"  # begins what is no id of an answer, name of an experiment or hash of a unit
MAX_SIGHTS = 1024  # of callers, at once
NO_UNIT = "it was not exposed there; what is recorded of it now is its past, which a covariate may use"
Request = TypeVar("Request")
Answer = TypeVar("Answer")
P = ParamSpec("P")
T = TypeVar("T")
THREADS, WAITING = 4, 64


class Recorder(Protocol):
    """Where outcomes go."""

    async def record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        """What became of each, once they are durable. Raises StoreDown, Overloaded (the queue is full)."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose outcomes they are: the tenant ('': nobody is told apart), what it may know of, and its quotas."""

    tenant: str = ""
    visibility: Visibility = Visibility()
    meter: UsageMeter | None = None


@dataclass(slots=True)
class _Parsed:
    """A batch: `good` are outcomes with their places in it, `errors` what is wrong with others, by place."""

    good: list[Outcome] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


class Intake:
    """Takes outcomes in. `plans` gives all experiments, the same object until they change; `refused` counts
    outcomes that could not be taken."""

    def __init__(
        self,
        recorder: Recorder,
        plans: Callable[[], Sequence[Experiment]],
        threads: StoreThreads,
        refused: Callable[[int], None],
    ) -> None:
        self._recorder, self._plans, self._threads, self._refused = recorder, plans, threads, refused
        self._room = asyncio.Semaphore(MAX_BATCHES)
        self._read: Sequence[Experiment] = ()
        self._there: dict[Visibility, _There] = {}

    async def one(self, message: pb.Outcome, caller: Caller) -> pb.RecordOutcomeResponse:
        """Raises InvalidRequest, NotFound where it belongs to nothing that was exposed, QuotaExceeded, and
        Overloaded where it would have to wait and may not."""
        if caller.meter is not None:
            caller.meter.take_outcomes(1)
        there = self._seen_by(caller.visibility)
        try:
            outcome = there.claimed(outcome_of(message, "outcome", time.time(), there.declared), caller)
        except InvalidRequest:
            self._refused(1)
            raise
        (status,) = await self._recorded([outcome], caller, self._recorder.record)
        if status is Accepted.NOT_KEPT:
            raise Overloaded(f"not kept: {FULL}", retry_after=FULL_RETRY)
        if status is Accepted.UNKNOWN:
            raise there.unknown(message)
        return pb.RecordOutcomeResponse(status=STATUSES[status])

    async def batch(self, request: pb.RecordOutcomesRequest, caller: Caller) -> pb.RecordOutcomesResponse:
        """The acknowledgement of a batch. Waits while the queue is full; raises StoreDown."""
        async with self._room:
            parsed = await self._threads.run(self._parse, request, self._seen_by(caller.visibility), caller)
            recorded = await self._recorded(parsed.good, caller, self._record)
        self._refused(len(parsed.errors))
        statuses = [pb.OUTCOME_STATUS_INVALID] * len(request.outcomes)
        for place, status in zip(parsed.places, recorded, strict=True):
            if status is Accepted.NOT_KEPT:
                parsed.errors[place] = f"outcomes[{place}]: not kept: {FULL}"
            else:
                statuses[place] = STATUSES[status]
        errors = [parsed.errors[place] for place in sorted(parsed.errors)]
        return pb.RecordOutcomesResponse(sequence=request.sequence, statuses=statuses, errors=errors)

    def _parse(self, request: pb.RecordOutcomesRequest, there: _There, caller: Caller) -> _Parsed:
        parsed, now = _Parsed(), time.time()
        for i, message in enumerate(request.outcomes):
            try:
                outcome = outcome_of(message, f"outcomes[{i}]", now, there.declared)
            except InvalidRequest as error:
                parsed.errors[i] = error.message[:500]
            else:
                parsed.good.append(there.claimed(outcome, caller))
                parsed.places.append(i)
        return parsed

    async def _record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        while True:
            try:
                return await self._recorder.record(outcomes)
            except Overloaded:  # a stream can wait: its client is not read meanwhile
                await asyncio.sleep(FULL_SECONDS)

    async def _recorded(
        self,
        outcomes: Sequence[Outcome],
        caller: Caller,
        record: Callable[[Sequence[Outcome]], Awaitable[tuple[Accepted, ...]]],
    ) -> tuple[Accepted, ...]:
        """What is not stored after all costs the caller's day nothing."""
        try:
            found = await record(outcomes)
        except Unavailable:  # not for a caller that went away: what it sent is stored
            if caller.meter is not None:
                caller.meter.not_stored(len(outcomes))
            raise
        if caller.meter is not None and (lost := found.count(Accepted.NOT_KEPT)):
            caller.meter.not_stored(lost)
        return found

    def _seen_by(self, visibility: Visibility) -> _There:
        """What is there for a caller, made anew where experiments have changed."""
        plans = self._plans()
        if plans is not self._read or len(self._there) > MAX_SIGHTS:
            self._read, self._there = plans, {}
        if (found := self._there.get(visibility)) is None:
            found = self._there[visibility] = _There(plans, visibility)
        return found


class _There:
    """Experiments as they are there for a caller, and what it may say of them."""

    def __init__(self, plans: Sequence[Experiment], visibility: Visibility) -> None:
        self._visibility = visibility
        self._seen = {plan.name for plan in plans if visibility.sees(plan)}
        self._hidden = {plan.name for plan in plans} - self._seen
        self.declared = Declared(plans, visibility.sees)

    def claimed(self, outcome: Outcome, caller: Caller) -> Outcome:
        """As it is kept: under a key of the tenant's own, so that two tenants may use the same one. One of an
        answer or experiment that is not the caller's becomes one of what nobody can ever have."""
        if caller.tenant:
            outcome = replace(outcome, key=f"{caller.tenant}/{outcome.key}")
        if outcome.response_id:
            own = may_be_of(outcome.response_id, caller.tenant)
            return outcome if own else replace(outcome, response_id=NOBODYS + outcome.response_id)
        name = outcome.experiment
        if name not in self._hidden and name in self._visibility.experiments:
            return outcome
        return replace(outcome, experiment=NOBODYS + name, unit=NOBODYS + outcome.unit)

    def unknown(self, message: pb.Outcome) -> NotFound:
        """What is said of an outcome that belongs to nothing."""
        if message.response_id:
            return NotFound("response", message.response_id, NO_RESPONSE)
        if message.unit.experiment.removeprefix("experiments/") not in self._seen:
            return ExperimentNotFound(message.unit.experiment)
        unit = message.unit.unit or message.unit.unit_hash
        return NotFound("unit", unit, f" in {message.unit.experiment}: {NO_UNIT}")


async def paced(
    batches: AsyncIterator[pb.RecordOutcomesRequest],
    meter: UsageMeter | None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[pb.RecordOutcomesRequest, None]:
    """The same, counted. While the caller owes outcomes a second the next batch is not read, so that the
    transport holds its sender back and no batch lies about. Raises QuotaExceeded where its day is used up."""
    while True:
        while meter is not None:
            if not (seconds := meter.owed()):
                break
            await sleep(seconds)
        try:
            batch = await anext(batches)
        except StopAsyncIteration:
            return
        if meter is not None:
            meter.owe_outcomes(len(batch.outcomes))
        yield batch


async def answers_in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    most: int,
) -> AsyncIterator[Answer]:
    """The answers in the order of the requests; `answer` runs for up to `most` of them at once.

    While so many wait for their answers no further request is read, so that the transport holds the sender
    back. What a request raises is raised in its turn; later ones are then given up.
    """
    room = asyncio.Semaphore(most)
    begun: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()
    tasks: set[asyncio.Future[Answer]] = set()

    async def read() -> None:
        iterator = aiter(requests)
        while True:
            await room.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
            task = asyncio.ensure_future(answer(request))
            tasks.add(task)
            begun.put_nowait(task)

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(lambda _: begun.put_nowait(None))
    try:
        while (task := await begun.get()) is not None:
            yield await task
            tasks.discard(task)
            room.release()
        await reader  # what ended it, if the requests did not
    finally:
        left: list[asyncio.Future[Any]] = [reader, *tasks]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class StoreThreads:
    """A few threads, and a bounded number of calls that wait for one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "experiments")
        self._inside, self._most, self._lock = 0, THREADS + WAITING, threading.Lock()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in a thread, in the context of the call; raises Overloaded at once where too many wait.
        Who gives up waiting does not stop the work."""
        with self._lock:
            if self._inside >= self._most:
                raise Overloaded(f"{self._inside} calls of experiments wait for the store already")
            self._inside += 1
        future = self._pool.submit(partial(copy_context().run, work, *args, **kwargs))
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: Future[T]) -> None:
        with self._lock:
            self._inside -= 1
