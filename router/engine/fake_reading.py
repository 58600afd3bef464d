"""Readings without a model: numbers from bytes alone, so that like texts get like numbers."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from router.engine.base import Reading
from router.errors import DeadlineExceeded, Unavailable
from router.types import FinishReason

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 64
KNOWN, UNKNOWN = -0.5, -4.0


def states(tokens: Sequence[int], ends: int = 0) -> NDArray[np.float32]:
    """[WIDTH] or, with `ends`, [3 * WIDTH]: of all tokens, of the first and of the last so many."""
    parts = [tokens, tokens[:ends], tokens[max(0, len(tokens) - ends) :]] if ends else [tokens]
    return np.concatenate([_counts(part) for part in parts])


def _counts(tokens: Sequence[int]) -> NDArray[np.float32]:
    """A unit vector: counts of runs of three bytes, hashed."""
    data = bytes(t % 256 for t in tokens)
    runs = [zlib.crc32(data[max(0, i - 2) : i + 1]) % WIDTH for i in range(len(data))]
    counts = np.bincount(runs, minlength=WIDTH).astype(np.float32)
    vector: NDArray[np.float32] = counts / np.linalg.norm(counts)
    return vector


def log_probabilities(context: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
    """[len(tokens)] likely is what ends a run of three that the context has."""
    whole, known = [*context, *tokens], set(zip(context, context[1:], context[2:], strict=False))
    places = range(len(context), len(whole))
    found = [KNOWN if tuple(whole[p - 2 : p + 1]) in known else UNKNOWN for p in places]
    return np.array(found, np.float32)


class ReadingRow:
    """A reading among the rows of the fake engine: one step, and it is done."""

    background = False

    def __init__(self, reading: Reading) -> None:
        self.answer: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._reading = reading

    @property
    def ended(self) -> bool:
        """Nothing more comes of it, or nobody waits."""
        return self.answer.done()

    def reap(self) -> bool:
        """End it if its deadline passed; True if it has ended."""
        deadline = self._reading.deadline
        if not self.ended and deadline is not None and time.monotonic() >= deadline:
            self.end(FinishReason.DEADLINE)
        return self.ended

    def step(self) -> None:
        """All of it."""
        reading = self._reading
        if reading.depth is None:
            self.answer.set_result(log_probabilities(reading.context, reading.tokens))
        else:
            self.answer.set_result(states(reading.tokens, reading.ends))

    def end(self, reason: FinishReason) -> None:
        """End it without a result."""
        late = reason is FinishReason.DEADLINE
        self.fail(DeadlineExceeded("not read in time") if late else Unavailable("the engine has stopped"))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.ended:
            self.answer.set_exception(error)
