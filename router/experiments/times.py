"""Metrics of the server's own times, by their names: `total_time_over_4s` is the share of units that had an
answer slower than 4 seconds, `total_time_p95` the time within which 95 % of units have all their answers.

A mean of times says little of those who waited long, and has no interval before 750 units; a share and a
quantile have exact ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

TO_FIRST, TOTAL = "time_to_first_token", "total_time"
TIMES = (TO_FIRST, TOTAL)
UNSERVED = "time_without_token"
"""Seconds until the end of a request that never got a first token, which would have come later still."""
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}
SHARE_FORM = f"TIME_over_LIMIT, TIME being {' or '.join(TIMES)} and LIMIT a number of ms, s or min"
SHARE_EXAMPLE = "total_time_over_4s"
_OVER = "_over_"
_SHARE = re.compile(rf"({'|'.join(TIMES)}){_OVER}([0-9]+(?:\.[0-9]+)?)({'|'.join(UNITS)})")


@dataclass(frozen=True, slots=True)
class SlowShare:
    """A unit is 1 if any of its `outcomes` was above `seconds`, else 0. Without one it has no value."""

    outcomes: tuple[str, ...]
    seconds: float


def slow_share(name: str) -> SlowShare | None:
    """What a metric of this name is, if it is a share of slow units."""
    match = _SHARE.fullmatch(name)
    if match is None or not (limit := float(match[2]) * UNITS[match[3]]):
        return None
    return SlowShare((match[1], UNSERVED), limit)


def is_meant_as_share(name: str) -> bool:
    """Whether the name begins like one of a share, right or wrong."""
    return any(name.startswith(f"{time}{_OVER.rstrip('_')}") for time in TIMES)


QUANTILE_FORM = f"TIME_pNN, TIME being {' or '.join(TIMES)} and NN a percentage above 0 and below 100"
QUANTILE_EXAMPLE = "total_time_p95"
_QUANTILE = re.compile(rf"({'|'.join(TIMES)})_p([0-9]{{1,2}}(?:\.[0-9]{{1,2}})?)")
_LIKE_QUANTILE = re.compile(rf"({'|'.join(TIMES)})_p[0-9]")
BINS, FIRST_EDGE, STEP = 714, 0.001, math.log(1.2) / 9
"""Bins in which units are counted by their times: the first up to a millisecond, each next one 2.05 % wider
(nine are a fifth), the last one from 1,800 seconds on."""


@dataclass(frozen=True, slots=True)
class TimeQuantile:
    """The time that a `level` of units do not pass, by the `outcomes` of each."""

    outcomes: tuple[str, ...]
    level: float


def time_quantile(name: str) -> TimeQuantile | None:
    """What a metric of this name is, if it is a quantile of times."""
    match = _QUANTILE.fullmatch(name)
    if match is None or not (percentage := float(match[2])):
        return None
    return TimeQuantile((match[1], UNSERVED), percentage / 100)


def is_meant_as_quantile(name: str) -> bool:
    """Whether the name begins like one of a quantile, right or wrong."""
    return _LIKE_QUANTILE.match(name) is not None


def bin_of(seconds: float) -> int:
    """The bin of a time: the first whose largest value is not below it."""
    if seconds <= FIRST_EDGE:
        return 0
    return min(BINS - 1, math.ceil(math.log(seconds / FIRST_EDGE) / STEP - 1e-9))
