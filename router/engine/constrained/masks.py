"""Masks are made by threads of their own, so that one that takes too long fails its row and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from router.engine.constrained.follow import Follower

if TYPE_CHECKING:
    from router.engine.scheduler import AnswerRow

log = logging.getLogger(__name__)

MASK_THREADS = 4  # at most: a step has few masks to make
MASK_SECONDS = 0.5  # of processor time for one mask; a usual one takes some microseconds
_LOOK_SECONDS = 0.1  # how often who waits looks for one that takes too long
_TOO_SLOW = "cannot be followed any further: it takes too long to find what may come next"


class Batch:
    """The followers of one step, each with whether it must go on; `done` once all have their masks."""

    def __init__(self, asked: Sequence[tuple[Follower, bool]]) -> None:
        self.asked = asked
        self.done = Event()
        self.at = 0  # the one whose mask is being made
        self.since = 0.0  # processor time of the thread when it began with it
        self._left = False
        self._lock = Lock()

    def next(self) -> tuple[Follower, bool] | None:
        """What to do next; None at the end, or where nobody waits any more."""
        with self._lock:
            if self._left or self.at == len(self.asked):
                return None
            self.since = time.thread_time()
            return self.asked[self.at]

    def made(self) -> bool:
        """The one at hand is done; False if nobody waits for it any more."""
        with self._lock:
            self.at += not self._left
            return not self._left

    def leave(self) -> Batch:
        """Wait no more for the one at hand, which fails; returns those behind it."""
        with self._lock:
            self._left = True
            for follower, _ in self.asked[self.at : self.at + 1]:
                follower.give_up(_TOO_SLOW)
            return Batch(self.asked[self.at + 1 :])


class MaskMaker:
    """Makes the masks of a step's rows. Used by the engine's thread; starts its own as they are needed."""

    def __init__(self, *, beside: bool = True, threads: int = 1) -> None:
        """`beside`: a forward pass leaves CPUs free for masks. `threads`: how many masks are made at once."""
        self._beside = beside
        self._workers: list[_Worker | None] = [None] * threads

    @contextmanager
    def there_after(self, rows: Sequence[AnswerRow]) -> Iterator[None]:
        """The masks that are needed whatever is chosen are there at the block's end.

        They are made beside it, or, where it has work for every CPU, after it: a mask would hold up all.
        """
        needed = [row for row in rows if row.follower is not None and row.sampling.truncates]
        if not needed:
            yield
        elif self._beside:
            batches = self._begin(needed)
            try:
                yield
            finally:
                self._finish(batches, needed)
        else:
            yield
            self.make(needed)

    def make(self, rows: Sequence[AnswerRow]) -> None:
        """Give constrained rows their masks. One that takes too long fails its row alone, others go on."""
        self._finish(self._begin(rows), rows)

    def close(self) -> None:
        """Let the threads go once they are done."""
        for at in range(len(self._workers)):
            self._dismiss(at)

    def _begin(self, rows: Sequence[AnswerRow]) -> list[Batch]:
        """A batch for each thread; nothing else may be done with the followers until `_finish`."""
        asked = [
            (row.follower, row.generated < row.job.params.min_tokens)
            for row in rows
            if row.follower is not None
        ]
        shares = min(len(asked), len(self._workers))
        return [self._queued(at, Batch(asked[at::shares])) for at in range(shares)]

    def _queued(self, at: int, batch: Batch) -> Batch:
        worker = self._workers[at]
        if worker is None:
            worker = self._workers[at] = _Worker()
        worker.queue.put(batch)
        return batch

    def _finish(self, batches: Sequence[Batch], rows: Sequence[AnswerRow]) -> None:
        for at, batch in enumerate(batches):
            self._wait(at, batch)
        for row in rows:
            if row.follower is not None:
                row.sampling.allowed = row.follower.allowed

    def _wait(self, at: int, batch: Batch) -> None:
        while not batch.done.wait(_LOOK_SECONDS):
            worker = self._workers[at]
            if worker is None or worker.seconds() - batch.since < MASK_SECONDS:
                continue
            log.warning("a mask takes more than %.1f s: its row fails", MASK_SECONDS)
            rest = batch.leave()
            self._dismiss(at)  # to what it cannot finish; another one makes the masks behind it
            batch = self._queued(at, rest)

    def _dismiss(self, at: int) -> None:
        worker, self._workers[at] = self._workers[at], None
        if worker is not None:
            worker.queue.put(None)


class _Worker:
    def __init__(self) -> None:
        self.queue: SimpleQueue[Batch | None] = SimpleQueue()
        thread = Thread(target=self._run, name="masks", daemon=True)
        thread.start()
        self._clock = time.pthread_getcpuclockid(thread.ident or 0)

    def seconds(self) -> float:
        """Processor time that the thread has used."""
        return time.clock_gettime(self._clock)

    def _run(self) -> None:
        while (batch := self.queue.get()) is not None:
            while (asked := batch.next()) is not None:
                follower, keep_going = asked
                try:
                    follower.make_mask(keep_going)
                except Exception:
                    log.exception("a mask cannot be made")
                    follower.give_up("cannot be followed any further")
                if not batch.made():
                    return
            batch.done.set()
