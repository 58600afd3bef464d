"""Units by the bin of their value, for quantiles of times: many bins in one row of the sums.

A series that is binned has rows of its own beside its sums, under `NAME`, a separator and a number: in their
columns, which hold powers of other series, they have the units of 34 bins each. Rows without units are not
kept; the times of an arm in a stretch of time take three to six of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.experiments.store.tables import COLUMNS, CUBES, PRODUCTS
from router.experiments.times import BINS, bin_of

SEPARATOR = "\x1f"
BLOCK = COLUMNS + PRODUCTS + CUBES


def block_of(key: str, value: float) -> tuple[str, tuple[float, ...]]:
    """Key of the row in which a unit with this value is counted, and what it adds to the row's columns."""
    block, place = divmod(bin_of(value), BLOCK)
    return f"{key}{SEPARATOR}{block}", tuple(float(i == place) for i in range(BLOCK))


def add_block(bins: dict[int, float], key: str, numbers: Sequence[float]) -> None:
    """Add the units of a row to those by bin."""
    first = int(key.rpartition(SEPARATOR)[2]) * BLOCK
    for place, units in enumerate(numbers, first):
        if units and place < BINS:
            bins[place] = bins.get(place, 0.0) + units
