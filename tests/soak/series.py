"""What is measured every second, and what is said of it: does it grow?

Two questions. Does a line through the samples rise (memory, by Theil and Sen, so that single peaks do not
count)? Is more there when nothing runs than before (everything that is counted)?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Sample = Mapping[str, float]
MOST_POINTS = 600  # of a slope; longer series are thinned by medians
DROPPED = 0.2  # of the samples, at the beginning: caches fill, pools start their threads
SHORT_SECONDS = 3600.0
MB_A_MINUTE, MB_IN_ALL = 1.0, 20.0  # of memory: in runs of less than an hour, in longer ones
COUNTED = ("fds", "threads", "tasks", "leases", "slots")  # must come back to what they were
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one detector says."""

    name: str
    first: float
    last: float
    slope: float  # a minute
    bound: str
    grows: bool

    def row(self, values: Sequence[float]) -> dict[str, Any]:
        """For the table."""
        return {
            "what": self.name,
            "first": self.first,
            "last": self.last,
            "slope a minute": self.slope,
            "bound": self.bound,
            "verdict": "GROWS" if self.grows else "holds",
            "course": sparkline(values),
        }


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil's and Sen's: the median slope of all pairs of points, by the unit of `times`."""
    x, y = (_thinned(np.asarray(one, float)) for one in (times, values))
    if len(x) < 2:
        return 0.0
    one, other = np.triu_indices(len(x), 1)
    return float(np.median((y[other] - y[one]) / (x[other] - x[one])))


def memory(times: Sequence[float], values: Sequence[float]) -> Verdict:
    """Of megabytes at times in seconds, the beginning left out."""
    skip = int(len(times) * DROPPED)
    at, mb = times[skip:], values[skip:]
    each = slope(at, mb) * 60
    minutes = (at[-1] - at[0]) / 60
    short = times[-1] - times[0] < SHORT_SECONDS
    bound = f"{MB_A_MINUTE:g} MB a minute" if short else f"{MB_IN_ALL:g} MB in all"
    grows = each > MB_A_MINUTE if short else each * minutes > MB_IN_ALL
    return Verdict("rss_mb", mb[0], mb[-1], each, bound, grows)


def counted(
    name: str, times: Sequence[float], values: Sequence[float], before: float, after: float, most: float = 0
) -> Verdict:
    """Of things that are counted: `before` and `after` the load, when nothing runs; `most` may be."""
    bound = f"{most:g} when idle" if most > before else "+0 when idle"
    return Verdict(name, before, after, slope(times, values) * 60, bound, after > max(before, most))


def judged(samples: Sequence[Sample], before: Sample, after: Sample, versions: int = 0) -> list[Verdict]:
    """What all detectors say of a run, its samples taken under load and `before` and `after` without.

    `versions`: so many adapters are served, each of which may have a slot.
    """
    times = [sample["at"] for sample in samples]
    found = [memory(times, [sample["rss_mb"] for sample in samples])]
    for name in COUNTED:
        values = [sample[name] for sample in samples]
        most = versions if name == "slots" else 0
        found.append(counted(name, times, values, before[name], after[name], most))
    return found


def least(samples: Sequence[Sample]) -> dict[str, float]:
    """The smallest of each: what is there when nothing runs, whatever a moment's pool adds."""
    return {name: min(sample[name] for sample in samples) for name in samples[0]}


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """The course of a series in one word."""
    if not values:
        return ""
    points = _thinned(np.asarray(values, float), width)
    low, high = float(points.min()), float(points.max())
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in points)


def _thinned(values: Any, most: int = MOST_POINTS) -> Any:
    """At most so many points, each the median of those it stands for."""
    if len(values) <= most:
        return values
    return np.array([np.median(part) for part in np.array_split(values, most)])
