"""A base model where there is none, for trying classifiers and for the fake engine: numbers from bytes alone,
so that like texts get like numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from router.types import HIDDEN_STATES

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 64


class FakeBase:
    """`router.routing.BaseModel` without a model."""

    abilities: Collection[str] = (HIDDEN_STATES,)

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, 64] unit vectors, [texts, 192] with `ends`."""
        rows = [hidden_of(_bytes(text), ends) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)


def _bytes(text: str) -> bytes:
    if not text:
        raise ValueError("an empty text cannot be read: decline such requests")
    return text.encode(errors="replace")


def hidden_of(tokens: Sequence[int], ends: int = 0) -> NDArray[np.float32]:
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
