"""Outcomes over gRPC: checked in a thread, recorded in order, acknowledged when they are durable.

Threads of their own wait for the database, so that neither the event loop nor other threads do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

from router.errors import ExperimentNotFound, FieldViolation, InvalidRequest, NotFound, Overloaded
from router.experiments.management.plans import Declared
from router.experiments.model import Accepted, Experiment, Outcome
from router.experiments.wire.outcomes import STATUSES, outcome_of
from router.v1 import experiments_pb2 as pb

MAX_BATCH = 1000
MAX_BATCHES = 16  # of all streams, at once
FULL_SECONDS = 0.1
NO_RESPONSE = (
    ": no experiment was exposed in it; where that is still being written, the outcome counts by itself, "
    "and the same key tells"
)
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


@dataclass(slots=True)
class _Parsed:
    """A batch: `good` are outcomes with their places in it, `errors` what is wrong with the others."""

    good: list[Outcome] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


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
        self._declared = Declared()

    async def one(self, message: pb.Outcome) -> pb.RecordOutcomeResponse:
        """Raises InvalidRequest, and NotFound where it belongs to nothing that was exposed."""
        try:
            outcome = outcome_of(message, "outcome", time.time(), self._metric_kinds())
        except InvalidRequest:
            self._refused(1)
            raise
        (status,) = await self._recorder.record([outcome])
        if status is Accepted.UNKNOWN:
            raise self._unknown(message, outcome)
        return pb.RecordOutcomeResponse(status=STATUSES[status])

    async def batch(self, request: pb.RecordOutcomesRequest) -> pb.RecordOutcomesResponse:
        """The acknowledgement of a batch. Waits while the queue is full; raises InvalidRequest for one that
        is too large, StoreDown."""
        if len(request.outcomes) > MAX_BATCH:
            text = f"must have at most {MAX_BATCH} entries, got {len(request.outcomes)}"
            raise InvalidRequest([FieldViolation("outcomes", text)])
        async with self._room:
            parsed = await self._threads.run(self._parse, request, self._metric_kinds())
            recorded = await self._record(parsed.good)
        self._refused(len(parsed.errors))
        statuses = [pb.OUTCOME_STATUS_INVALID] * len(request.outcomes)
        for place, status in zip(parsed.places, recorded, strict=True):
            statuses[place] = STATUSES[status]
        return pb.RecordOutcomesResponse(sequence=request.sequence, statuses=statuses, errors=parsed.errors)

    def _parse(self, request: pb.RecordOutcomesRequest, declared: Declared) -> _Parsed:
        parsed, now = _Parsed(), time.time()
        for i, message in enumerate(request.outcomes):
            try:
                outcome = outcome_of(message, f"outcomes[{i}]", now, declared)
            except InvalidRequest as error:
                parsed.errors.append(error.message[:500])
            else:
                parsed.good.append(outcome)
                parsed.places.append(i)
        return parsed

    async def _record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        while True:
            try:
                return await self._recorder.record(outcomes)
            except Overloaded:  # a stream can wait: its client is not read meanwhile
                await asyncio.sleep(FULL_SECONDS)

    def _metric_kinds(self) -> Declared:
        """What metrics are, made anew where experiments have changed."""
        plans = self._plans()
        if plans is not self._read:
            self._read, self._declared = plans, Declared(plans)
        return self._declared

    def _unknown(self, message: pb.Outcome, outcome: Outcome) -> NotFound:
        if outcome.response_id:
            return NotFound("response", outcome.response_id, NO_RESPONSE)
        if all(plan.name != outcome.experiment for plan in self._plans()):
            return ExperimentNotFound(message.unit.experiment)
        unit = message.unit.unit or message.unit.unit_hash
        return NotFound("unit", unit, f" in {message.unit.experiment}: {NO_UNIT}")


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
        """`work(...)` in a thread; raises Overloaded at once where too many wait. Who gives up waiting does
        not stop the work."""
        with self._lock:
            if self._inside >= self._most:
                raise Overloaded(f"{self._inside} calls of experiments wait for the store already")
            self._inside += 1
        future = self._pool.submit(work, *args, **kwargs)
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: Future[T]) -> None:
        with self._lock:
            self._inside -= 1
