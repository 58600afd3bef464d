"""Masks are made by a thread of their own: one that takes too long holds up nothing but its row.

Those that are needed whatever is chosen are made while the engine's thread computes.
"""

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
    from router.engine.rows import AnswerRow

log = logging.getLogger(__name__)

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
    """Makes the masks of a step's rows. Used by the engine's thread; starts its own with the first batch."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None

    @contextmanager
    def made_meanwhile(self, rows: Sequence[AnswerRow]) -> Iterator[None]:
        """Masks that are needed whatever is chosen are made beside the block, and are there at its end."""
        needed = [row for row in rows if row.follower is not None and row.sampling.truncates]
        if not needed:
            yield
            return
        batch = self._begun(needed)
        try:
            yield
        finally:
            self._finish(batch, needed)

    def make(self, rows: Sequence[AnswerRow]) -> None:
        """Give constrained rows their masks. One that takes too long fails its row, the others go on."""
        self._finish(self._begun(rows), rows)

    def close(self) -> None:
        """Let the thread go once it is done."""
        if self._worker is not None:
            self._worker.queue.put(None)
            self._worker = None

    def _begun(self, rows: Sequence[AnswerRow]) -> Batch:
        """Nothing else may be done with the rows' followers until `_finish`."""
        asked = [
            (row.follower, row.generated < row.job.params.min_tokens)
            for row in rows
            if row.follower is not None
        ]
        return self._queued(Batch(asked))

    def _queued(self, batch: Batch) -> Batch:
        if self._worker is None:
            self._worker = _Worker()
        self._worker.queue.put(batch)
        return batch

    def _finish(self, batch: Batch, rows: Sequence[AnswerRow]) -> None:
        while not batch.done.wait(_LOOK_SECONDS):
            worker = self._worker
            if worker is None or worker.seconds() - batch.since < MASK_SECONDS:
                continue
            log.warning("a mask takes more than %.1f s: its row fails", MASK_SECONDS)
            rest = batch.leave()
            self.close()  # the thread is left to what it cannot finish; another one makes those behind it
            batch = self._queued(rest)
        for row in rows:
            if row.follower is not None:
                row.sampling.allowed = row.follower.allowed


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
