"""Training, validation and test rows by a hash, so that the same row always lands on the same side.

Growing data keeps test rows out of training: the shares of validation and test rows shrink from the outer
ends of the hash's range, so that a row may move from them to the training rows, never the other way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from router.errors import ConfigError
from router.training.new.cleaning import Pair

SHARE = 0.15  # of the rows, for validation and for test each
MOST = 300  # rows in each of them: more cost time and say little more

Split = dict[str, list[Pair]]


def split(pairs: Sequence[Pair]) -> Split:
    """`train`, `valid` and `test`; pairs of one group stay together, in the order they came.

    Raises ConfigError where a split stays empty: too few groups.
    """
    share = min(SHARE, MOST / max(1, len(pairs)))
    made: Split = {"train": [], "valid": [], "test": []}
    for pair in pairs:
        place = _place(pair.group)
        made["test" if place < share else "valid" if place >= 1 - share else "train"].append(pair)
    if empty := [name for name, rows in made.items() if not rows]:
        groups = len({pair.group for pair in pairs})
        raise ConfigError(
            f"the {groups} groups of rows are too few to be split: none is left for {' and '.join(empty)}; "
            "choose another --group-column, or none"
        )
    return made


def _place(group: str) -> float:
    """A number in [0, 1), the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"split {group}".encode()).digest()[:6]) / (1 << 48)
