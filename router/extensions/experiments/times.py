"""Metrics of the server's own times, by their names: `total_time_over_4s` is the share of units that had an
answer slower than 4 seconds.

A mean of times says little of those who waited long, and has no interval before 750 units; a share has an
exact one.

Where all arms wait in one queue of one device, the requests of a slow arm hold up those of the other: both
wait alike, and what a roll-out does to the wait is not to be seen. A difference in total time is real, since
it is the arm's own part, but a roll-out has more of it. So a time may stop an arm, and promotes none.
"""

from __future__ import annotations

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


WORDS = "both arms share one queue, so this compares little"


def shares_queue(metric: str) -> bool:
    """Whether arms share what a metric measures."""
    return metric in TIMES or is_meant_as_share(metric)
