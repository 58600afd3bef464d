"""Which rows each step sees: a function of the seed alone, so that a resumed run sees the same."""

from __future__ import annotations

from functools import lru_cache

import torch


def rows_of_step(step: int, count: int, batch: int, seed: int) -> list[int]:
    """Indices of the `batch` rows of step 1, 2, …; every epoch is a new permutation of all `count` rows."""
    places = range((step - 1) * batch, step * batch)
    return [_permutation(place // count, count, seed)[place % count] for place in places]


@lru_cache(maxsize=4)
def _permutation(epoch: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
