"""Repetition, frequency and presence penalties over the few tokens a row has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.types import SamplingParams


class TokenHistory:
    """Distinct tokens of a row, each with how often the answer has it (0: only the prompt does)."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._size = 0
        self._place: dict[int, int] = {}
        self._ids: NDArray[np.int64] = np.empty(64, np.int64)
        self._counts: NDArray[np.float32] = np.empty(64, np.float32)
        for token_id in dict.fromkeys(prompt_ids):
            self._append(token_id, 0.0)

    def add(self, token_id: int) -> None:
        """Count one token of the answer."""
        place = self._place.get(token_id)
        if place is None:
            self._append(token_id, 1.0)
        else:
            self._counts[place] += 1.0

    @property
    def ids(self) -> NDArray[np.int64]:
        """[distinct] token ids."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """[distinct] occurrences in the answer."""
        return self._counts[: self._size]

    def _append(self, token_id: int, count: float) -> None:
        if self._size == len(self._ids):
            self._ids = np.resize(self._ids, 2 * self._size)
            self._counts = np.resize(self._counts, 2 * self._size)
        self._ids[self._size], self._counts[self._size] = token_id, count
        self._place[token_id] = self._size
        self._size += 1


def penalise(scores: Tensor, rows: Sequence[tuple[TokenHistory | None, SamplingParams]]) -> None:
    """Apply each row's penalties to `scores` [rows, vocab] float32, in place.

    Repetition (CTRL, Keskar et al. 2019): seen tokens' positive scores are divided by it, negative
    ones multiplied. Frequency and presence: subtracted per occurrence, and once, in the answer.
    """
    seen = [(row, h, p) for row, (h, p) in enumerate(rows) if h is not None and len(h.ids)]
    if not seen:
        return
    lengths = [len(history.ids) for _, history, _ in seen]

    def spread(values: Sequence[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), lengths)).to(scores.device)

    row = torch.from_numpy(np.repeat([r for r, _, _ in seen], lengths)).to(scores.device)
    ids = torch.from_numpy(np.concatenate([h.ids for _, h, _ in seen])).to(scores.device)
    counts = torch.from_numpy(np.concatenate([h.counts for _, h, _ in seen])).to(scores.device)
    repetition = spread([p.repetition_penalty for _, _, p in seen])
    value = scores[row, ids]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= counts * spread([p.frequency_penalty for _, _, p in seen])
    value -= (counts > 0) * spread([p.presence_penalty for _, _, p in seen])
    scores[row, ids] = value
