"""Which rows each step sees: a function of lengths and seed alone, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

WINDOW = 16  # batches that are sorted by length together


def rows_of_step(step: int, lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """Indices of the rows of step 1, 2, …; `lengths` are the rows' tokens.

    Every epoch is a new permutation, cut into windows; rows of like length inside a window go together,
    so that little is spent on padding, and the batches of a window come in random order. Rows that do
    not fill a batch at the end of an epoch wait for the next one.
    """
    epoch, place = divmod(step - 1, max(1, len(lengths) // batch))
    return _batches(epoch, tuple(lengths), batch, seed)[place]


@lru_cache(maxsize=2)
def _batches(epoch: int, lengths: tuple[int, ...], batch: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    full = order[: max(1, len(order) // batch) * batch]
    batches: list[list[int]] = []
    for start in range(0, len(full), WINDOW * batch):
        window = sorted(full[start : start + WINDOW * batch], key=lengths.__getitem__)
        cut = [window[place : place + batch] for place in range(0, len(window), batch)]
        shuffled: list[int] = torch.randperm(len(cut), generator=generator).tolist()
        batches += [cut[place] for place in shuffled]
    return batches
