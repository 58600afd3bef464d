"""What answers leave behind, and its one way into the store: ordered, bounded, in batches.

A `Trial` watches one request of an enrolled unit. It records exposures, and the outcomes that need no client.
A thread writes the queue, one batch after the other. Every call of the store notes whether it answers, and
every request reads that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any

from router.errors import Overloaded, StoreDown
from router.extensions.experiments.assignment import (
    ArmAssignment,
)
from router.extensions.experiments.model import (
    SERVER_KEYS,
    Accepted,
    Exposure,
    StoredOutcome,
)
from router.extensions.experiments.store.store import ExperimentStore
from router.ports import End, Exposed, Served, Stage
from router.types import FinishReason

log = logging.getLogger(__name__)
LIMIT = 50_000  # records in the queue
FLUSH_SECONDS = 5.0
LINGER = 0.5  # how long a batch gathers while nobody waits for it: a transaction costs milliseconds
GATHER = 0.1  # and how long if somebody does, unless it has ENOUGH rows: others may be about to wait too
ENOUGH = 100
RETRY = 1.0
MOST = 5000  # rows in one transaction, more only if one entry has more
PATIENCE = 5.0


class Recorder:
    """Call it on the event loop; a thread of its own writes, and nothing here waits but `record` and `flush`.

    What is put in first is written first, exposures of one batch before its outcomes. While the store is
    down, records wait in the queue; past `LIMIT` records, new ones are dropped and counted.
    """

    def __init__(
        self,
        store: ExperimentStore,
        availability: Availability | None = None,
        counts: ServingCounts | None = None,
    ) -> None:
        self.availability = availability or Availability()
        self.counts = counts or ServingCounts()
        self._put = 0
        self._writer = Writer(store, self.availability, self.counts.lose)
        self._open = False

    def start(self) -> None:
        """Begin to write; on the event loop."""
        self._writer.begin(asyncio.get_running_loop())
        self._open = True

    @property
    def queued(self) -> int:
        """Records that are not durable yet."""
        return self._put - self._writer.done

    def expose(self, exposure: Exposure) -> None:
        """An arm began to answer. Returns at once; durable within about half a second."""
        self._later(RecordKind.EXPOSURES, (exposure,))

    def observe(self, outcomes: Sequence[StoredOutcome]) -> None:
        """Outcomes that the server itself makes. Returns at once."""
        self._later(RecordKind.OUTCOMES, outcomes)

    async def record(self, outcomes: Sequence[StoredOutcome]) -> tuple[Accepted, ...]:
        """What became of each, in order, once they are durable, after all that was put in before.

        Batches of many callers share a transaction. Raises StoreDown (send them again, with the same keys)
        and Overloaded (the queue is full).
        """
        if not outcomes:
            return ()
        if self.queued + len(outcomes) > LIMIT:
            raise Overloaded("too many outcomes wait to be written; send them again", bound="outcomes")
        found: tuple[Accepted, ...] = await self._awaited(RecordKind.OUTCOMES, outcomes)
        self.counts.outcomes.update(found)
        return found

    async def flush(self) -> None:
        """Return once all that was put in before is durable. Raises StoreDown."""
        await self._awaited(RecordKind.NOTHING, ())

    async def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Write what is there, then let the thread go; gives up after `seconds`, or if the store is down."""
        if not self._open:
            return
        self._open = False
        if not await asyncio.to_thread(self._writer.end, seconds):
            log.error("%d records of experiments were not written: the store did not answer", self.queued)

    def _later(self, kind: RecordKind, rows: Sequence[Any]) -> None:
        if not rows:
            return
        if not self._open or self.queued + len(rows) > LIMIT:
            self.counts.lose(kind.value, len(rows))
            return
        self._put += len(rows)
        self._writer.put(QueuedRecords(kind, rows))

    async def _awaited(self, kind: RecordKind, rows: Sequence[Any]) -> Any:
        if not self._open:
            raise StoreDown("the server takes no records now")
        if down := self.availability.down:
            raise down
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put += len(rows)
        self._writer.put(QueuedRecords(kind, rows, answer), urgent=True)
        return await answer


class RecordKind(Enum):
    """What an entry holds; the order in which a batch is written."""

    EXPOSURES = "exposures"
    OUTCOMES = "outcomes"
    NOTHING = "nothing"  # only waited for


CALLS = {
    RecordKind.EXPOSURES: "expose",
    RecordKind.OUTCOMES: "record",
}


@dataclass(frozen=True, slots=True)
class QueuedRecords:
    """Rows of one kind, and who waits for them."""

    kind: RecordKind
    rows: Sequence[Any]
    waiter: asyncio.Future[Any] | None = None


Batch = dict[RecordKind, list[QueuedRecords]]
Answers = Sequence[tuple[asyncio.Future[Any], Any]]  # who waits, and a result or an exception


class Writer:
    """`put` from the event loop; the rest happens in the thread. `done` counts rows that left the queue."""

    def __init__(
        self, store: ExperimentStore, availability: Availability, lose: Callable[[str, int], None]
    ) -> None:
        self.done = 0
        self._availability, self._lose = availability, lose
        self._store = store
        self._queue: SimpleQueue[QueuedRecords | None] = SimpleQueue()
        self._urgent, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="experiments writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; waiters are answered on `loop`."""
        self._loop = loop
        self._thread.start()

    def put(self, entry: QueuedRecords, urgent: bool = False) -> None:
        """Queue an entry; an urgent one is not left to gather company."""
        self._queue.put(entry)
        if urgent:
            self._urgent.set()

    def end(self, seconds: float) -> bool:
        """Write what is there and stop; blocks. False if that was not possible in time."""
        self._ending.set()
        self._queue.put(None)
        self._urgent.set()
        self._thread.join(seconds)
        return not self._thread.is_alive() and self._queue.empty()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            batch: Batch = {kind: [] for kind in RecordKind}
            batch[entry.kind].append(entry)
            self._urgent.wait(LINGER)
            self._gather(batch)
            if _rows(batch) < ENOUGH:
                self._ending.wait(GATHER)
                self._gather(batch)
            self._write(batch)

    def _gather(self, batch: Batch) -> None:
        """Take what is queued now."""
        self._urgent.clear()  # before: who is urgent from now on is found in the queue, or asks again
        for _ in range(self._queue.qsize()):
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return
            if entry is None:  # the end: for `_run` to see
                self._queue.put(None)
                return
            batch[entry.kind].append(entry)

    def _write(self, batch: Batch) -> None:
        """Until it is written: while the store is down, waiters get the error and the rest is tried again."""
        while True:
            try:
                for kind, entries in batch.items():
                    self._send(kind, entries)
                return
            except StoreDown as error:
                self._turn_away(batch, error)
            if self._ending.wait(RETRY):
                self._give_up(batch)
                return
            if not any(batch.values()):
                self._availability.forgive("write")
                return
            self._gather(batch)

    def _send(self, kind: RecordKind, entries: list[QueuedRecords]) -> None:
        """Write all and empty the list; an entry that the store refuses is lost alone. Raises StoreDown."""
        most = MOST
        while entries:
            chunk = _first(entries, most)
            try:
                found = self._call(kind, [row for entry in chunk for row in entry.rows])
            except StoreDown:
                raise
            except Exception as error:
                if len(chunk) > 1:
                    most = 0  # one by one, to find it
                    continue
                log.exception("the store refused %s", kind.value)
                self._lost(chunk[0], error)
            else:
                self._settle(chunk, found)
            del entries[: len(chunk)]

    def _call(self, kind: RecordKind, rows: list[Any]) -> Any:
        if not rows:
            return None
        with self._availability.calling("write"):
            return getattr(self._store, CALLS[kind])(rows)

    def _settle(self, entries: Sequence[QueuedRecords], found: Any) -> None:
        """Each waiter gets its part of what the store answered."""
        answers, begin = [], 0
        for entry in entries:
            end = begin + len(entry.rows)
            if entry.waiter is not None:
                answers.append((entry.waiter, found[begin:end] if found else None))
            begin = end
        self.done += begin
        self._answer(answers)

    def _turn_away(self, batch: Batch, error: StoreDown) -> None:
        for entries in batch.values():
            turned = [entry for entry in entries if entry.waiter is not None]
            entries[:] = [entry for entry in entries if entry.waiter is None]
            for entry in turned:
                self._lost(entry, type(error)(error.message))

    def _give_up(self, batch: Batch) -> None:
        self._gather(batch)
        for entries in batch.values():
            for entry in entries:
                self._lost(entry, StoreDown("the server stopped while the store was down"))

    def _lost(self, entry: QueuedRecords, error: Exception) -> None:
        self.done += len(entry.rows)
        if entry.waiter is None:
            self._lose(entry.kind.value, len(entry.rows))
        else:
            self._answer([(entry.waiter, error)])

    def _answer(self, answers: Answers) -> None:
        loop = self._loop
        if answers and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_tell, answers)


def _rows(batch: Batch) -> int:
    return sum(len(entry.rows) for entries in batch.values() for entry in entries)


def _first(entries: Sequence[QueuedRecords], most: int) -> Sequence[QueuedRecords]:
    """The first entry, and as many more as have `most` rows together."""
    end, rows = 1, len(entries[0].rows)
    while end < len(entries) and rows + len(entries[end].rows) <= most:
        rows += len(entries[end].rows)
        end += 1
    return entries[:end]


def _tell(answers: Answers) -> None:
    for waiter, answer in answers:
        if waiter.done():  # nobody waits any more
            continue
        if isinstance(answer, Exception):
            waiter.set_exception(answer)
        else:
            waiter.set_result(answer)


class Availability:
    """Up while the last read and the last write worked and none takes longer than `PATIENCE` seconds.

    Reads and writes are separate: a full disk can be read.
    """

    def __init__(self) -> None:
        self._failed: dict[str, StoreDown] = {}
        self._running: dict[int, float] = {}  # thread -> since when
        self._said = ""

    @property
    def up(self) -> bool:
        """Whether experiments may be served."""
        return not self.problem

    @property
    def problem(self) -> str:
        """Why not; empty if all is well."""
        return down.message if (down := self.down) else ""

    @property
    def down(self) -> StoreDown | None:
        """The same as an error to raise."""
        for failed in tuple(self._failed.values()):
            return type(failed)(failed.message)
        if self._running:
            waited = time.monotonic() - min(tuple(self._running.values()), default=time.monotonic())
            if waited > PATIENCE:
                return StoreDown(f"the store has not answered for {waited:.0f} s")
        return None

    @contextmanager
    def calling(self, kind: str) -> Iterator[None]:
        """Around one call of the store; `kind` is read or write."""
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        try:
            yield
        except StoreDown as error:
            self._failed[kind] = error
            raise
        else:
            self.forgive(kind)
        finally:
            del self._running[thread]

    def forgive(self, kind: str) -> None:
        """Let the next call of that kind find out."""
        self._failed.pop(kind, None)

    def tell(self) -> None:
        """Log a change since the last time."""
        problem = self.problem
        if problem and not self._said:
            log.error("experiments are off: %s; requests are served without them", problem)
        elif self._said and not problem:
            log.info("experiments are on again")
        self._said = problem


@dataclass(slots=True)
class ServingCounts:
    """Everything but `lost` is changed on the event loop only."""

    exposures: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """Experiment, arm, stage, and error or cancelled: requests that ended without their whole answer."""
    unit_missing: Counter[str] = field(default_factory=Counter)  # experiment
    skipped: Counter[str] = field(default_factory=Counter)  # experiment: not assigned, the store was down
    shadows: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # experiment, arm, result
    acts: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, what a rule did
    outcomes: Counter[str] = field(default_factory=Counter)  # what became of them: Accepted, or invalid
    lost: Counter[str] = field(default_factory=Counter)  # kind of record that was not kept
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lose(self, kind: str, number: int) -> None:
        """Records of a kind were not kept. From any thread."""
        with self._lock:
            self.lost[kind] += number


@dataclass(frozen=True, slots=True)
class Shown:
    """An experiment that an answer is an exposure in. `adapter` is the digest of the arm's own adapter: what
    stands in for it is not what is tested, and everything is where nothing of an arm's own is."""

    assignment: ArmAssignment
    adapter: str
    base: str
    router: str
    degraded: str = ""


class Trial:
    """A watcher. A unit counts from its assignment (intention to treat): a request that ends before its first
    token is an exposure, too. Otherwise an arm would lose the users whom it serves worst."""

    def __init__(self, recorder: Recorder, served: Served, shown: Sequence[Shown]) -> None:
        self._recorder, self._served, self._shown = recorder, served, shown
        self._began = False

    def began(self) -> None:
        """The arm, or what stands in for it, has begun to answer."""
        self._began = True
        self._expose(None)

    def _expose(self, stage: Stage | None) -> None:
        now, counts = time.time(), self._recorder.counts
        for one in self._shown:
            exposure = self._exposure(one, now)
            counts.exposures[exposure.experiment, exposure.arm] += 1
            if one.degraded:
                counts.degraded[exposure.experiment, exposure.arm] += 1
            self._recorder.expose(exposure)
            place = (exposure.experiment, exposure.phase, exposure.arm, exposure.unit)
            self._served.exposed(Exposed(*place, now, one.degraded, stage))

    def _exposure(self, one: Shown, now: float) -> Exposure:
        running, request = one.assignment.running, self._served.request
        return Exposure(
            experiment=running.name,
            phase=running.phase,
            unit=one.assignment.unit,
            arm=one.assignment.arm.name,
            time=now,
            response_id=request.request_id,
            adapter_digest=one.adapter,
            base_digest=one.base,
            router_digest=one.router,
            degraded=one.degraded,
            segments={
                one.label: request.labels[one.label]
                for one in running.spec.segments
                if request.labels.get(one.label)
            },
        )

    def ended(self, end: End) -> None:
        """Keep the built-in outcomes, once for all experiments: those of a response count in each."""
        stage, counts = end.stage, self._recorder.counts
        if not self._began:
            self._expose(stage)
        response, waited = self._served.request.request_id, None
        if not self._began:
            waited = time.monotonic() - self._served.since
        self._recorder.observe(built_in_outcomes(response, end, time.time(), waited))
        if stage is not None:
            how = "cancelled" if end.cancelled else "error"
            for one in self._shown:
                counts.ended[one.assignment.running.name, one.assignment.arm.name, stage.value, how] += 1


def built_in_outcomes(
    response_id: str, end: End, now: float, unserved: float | None = None
) -> tuple[StoredOutcome, ...]:
    """`model.BUILT_IN` of one response. An answer that broke off counts with what was given until then.

    `unserved`: seconds until the end of a request that never got a first token. It has no times and no
    length, since short ones would make its arm look fast.
    """
    usage = end.usage
    values: dict[str, float] = {"error": bool(end.error), "cancelled": end.cancelled}
    if unserved is not None:
        values["time_without_token"] = unserved
    else:
        values["total_time"] = usage.total_time
        values["completion_tokens"] = usage.completion_tokens
        values["length_stop"] = end.reason is FinishReason.LENGTH
        if usage.completion_tokens:
            values["time_to_first_token"] = usage.time_to_first_token
    return tuple(
        StoredOutcome(
            f"{SERVER_KEYS}{metric}:{response_id}",
            metric,
            float(value),
            now,
            response_id=response_id,
        )
        for metric, value in values.items()
    )
