"""The state of one answer in its grammar, and the masks of the tokens that may come next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.engine.constrained.source import DEAD_END, VocabularySpec, broke, refused
from router.errors import InvalidRequest
from router.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from router.engine.rows import AnswerRow


_WORD = 32


class GrammarState:
    """Where one answer is in its grammar: a function of the tokens it accepted, not of steps.

    Nothing raises: a grammar that turns out to be too complex, or a dead end, leaves `error`.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        constraint: Constraint,
        spec: VocabularySpec,
        *,
        forcing: bool = True,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `forcing` every token is sampled, those that must come included."""
        self.error: InvalidRequest | None = None
        self.allowed: NDArray[np.int32] = np.zeros(-(-spec.width // _WORD), np.int32)  # a bit for each token
        self._matcher, self._constraint = matcher, constraint
        self._ends = [(end // _WORD, _all_but(end % _WORD)) for end in spec.ends]
        self._forcing, self._on_error = forcing, on_error

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return self.error is None and self._matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Go on after a token of the answer."""
        self._matcher.consume_token(token)
        self._note_error()

    def forced(self) -> list[int]:
        """The tokens that must come next, which it has accepted then; none where each is to be sampled."""
        if not self._forcing or self.error is not None:
            return []
        tokens = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
            self._note_error()
        return tokens

    def permits(self, token: int) -> bool:
        """Whether its mask has the token, at a hundredth of what a mask costs; True where it is at an error.

        As without `keep_going`: an end is in it wherever the answer is whole.
        """
        forced = self._matcher.compute_ff_tokens()
        return token == forced[0] if forced else self.follows(token)

    def follows(self, token: int) -> bool:
        """The same where more than one token can follow."""
        if self._matcher.validate_tokens([token]):
            return True
        self._note_error()
        return self.error is not None

    def ahead(self) -> GrammarAhead:
        """A copy that goes on by itself."""
        return GrammarAhead(self._matcher.deep_copy())

    def make_mask(self, keep_going: bool) -> None:
        """Fill `allowed`: an end is in it if the answer is whole.

        With `keep_going` it is in it only if nothing else can follow, either. May run in another thread,
        while nothing else uses this state.
        """
        self._matcher.unsafe_compute_mask_ptr(self.allowed.ctypes.data, self.allowed.nbytes)
        self._note_error()
        whole = self._matcher.is_accepting()
        if self.error is not None or (whole and not keep_going):
            return
        before = [(word, self.allowed[word]) for word, _ in self._ends]
        for word, others in self._ends:
            self.allowed[word] &= others
        if self.allowed.any():
            return
        if not whole:
            self.give_up(DEAD_END)
        for word, bits in before:
            self.allowed[word] = bits

    def give_up(self, why: str) -> None:
        """End it with an error."""
        self.error = refused(self._constraint, why)
        self._on_error()

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self.give_up(broke(self._matcher.get_error()))


class GrammarAhead:
    """A grammar that is tried some tokens ahead of its answer."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the answer would be whole, and nothing could follow."""
        return self._matcher.is_stopped()

    def take(self, token: int) -> list[int] | None:
        """Go on after a token: what must come behind it; None where it may not come."""
        matcher = self._matcher
        if not matcher.validate_tokens([token]) or not matcher.consume_token(token):
            return None
        forced: list[int] = matcher.compute_ff_tokens()
        return forced if not forced or matcher.consume_tokens(forced) else []


def _all_but(bit: int) -> np.int32:
    return np.uint32(~(1 << bit) & 0xFFFFFFFF).view(np.int32)


log = logging.getLogger(__name__)

MASK_SECONDS = 0.5  # of processor time for one mask; a usual one takes some microseconds
_LOOK_SECONDS = 0.1  # between looks for a mask that takes too long
_TOO_SLOW = "cannot be followed any further: it takes too long to find what may come next"


class MaskBatch:
    """The grammar states of one step, each with whether it must go on; `done` once all have their masks."""

    def __init__(self, entries: Sequence[tuple[GrammarState, bool]]) -> None:
        self.entries = entries
        self.done = Event()
        self.at = 0  # the one whose mask is being made
        self.since = 0.0  # processor time of the thread when it began with it
        self._left = False
        self._lock = Lock()

    def next(self) -> tuple[GrammarState, bool] | None:
        """What to do next; None at the end, or once the batch was left."""
        with self._lock:
            if self._left or self.at == len(self.entries):
                return None
            self.since = time.thread_time()
            return self.entries[self.at]

    def made(self) -> bool:
        """The current one is done; False if the batch was left meanwhile."""
        with self._lock:
            self.at += not self._left
            return not self._left

    def leave(self) -> MaskBatch:
        """Stop waiting for the current one, which fails; returns those behind it."""
        with self._lock:
            self._left = True
            for state, _ in self.entries[self.at : self.at + 1]:
                state.give_up(_TOO_SLOW)
            return MaskBatch(self.entries[self.at + 1 :])


class MaskMaker:
    """Makes the masks of a step's rows in a thread of its own, so that a slow one fails only its row.

    Used by the engine's thread; its own thread starts with the first batch.
    """

    def __init__(self) -> None:
        self._worker: _Worker | None = None

    def make(self, rows: Sequence[AnswerRow]) -> None:
        """Give constrained rows their masks. One that takes too long fails its row, the others go on."""
        entries = [
            (row.grammar, row.generated < row.job.params.min_tokens)
            for row in rows
            if row.grammar is not None
        ]
        self._finish(self._queued(MaskBatch(entries)), rows)

    def close(self) -> None:
        """Let the thread go once it is done."""
        if self._worker is not None:
            self._worker.queue.put(None)
            self._worker = None

    def _queued(self, batch: MaskBatch) -> MaskBatch:
        if self._worker is None:
            self._worker = _Worker()
        self._worker.queue.put(batch)
        return batch

    def _finish(self, batch: MaskBatch, rows: Sequence[AnswerRow]) -> None:
        while not batch.done.wait(_LOOK_SECONDS):
            worker = self._worker
            if worker is None or worker.seconds() - batch.since < MASK_SECONDS:
                continue
            log.warning("a mask takes more than %.1f s: its row fails", MASK_SECONDS)
            rest = batch.leave()
            self.close()  # the thread is left to what it cannot finish; another one makes those behind it
            batch = self._queued(rest)
        for row in rows:
            if row.grammar is not None:
                row.sampling.allowed = row.grammar.allowed


class _Worker:
    def __init__(self) -> None:
        self.queue: SimpleQueue[MaskBatch | None] = SimpleQueue()
        thread = Thread(target=self._run, name="masks", daemon=True)
        thread.start()
        self._clock = time.pthread_getcpuclockid(thread.ident or 0)

    def seconds(self) -> float:
        """Processor time that the thread has used."""
        return time.clock_gettime(self._clock)

    def _run(self) -> None:
        while (batch := self.queue.get()) is not None:
            while (entries := batch.next()) is not None:
                state, keep_going = entries
                try:
                    state.make_mask(keep_going)
                except Exception:
                    log.exception("a mask cannot be made")
                    state.give_up("cannot be followed any further")
                if not batch.made():
                    return
            batch.done.set()
