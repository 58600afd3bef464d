"""The bars of a report as SVG text: a range for each metric, all on one axis.

Colours are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

BAR = 200.0  # the width of a range's bar
WIDEST = 3.0  # the axis of the bars reaches at most so many times as far as what decides, and the margins
ROOM, LEAST_SIDE = 1.12, 0.3  # beyond the furthest end; a side has this part of the other one at least
Gain = tuple[float, float, float]


class Bar(NamedTuple):
    """A range on an axis that all share: `gain` is effect, low and high with better above zero, None where
    there is no range; `limit` is the margin of a guardrail."""

    gain: Gain | None
    limit: float | None
    tone: str
    decides: bool


def range_bars(found: Sequence[Bar]) -> tuple[str, ...]:
    """A small SVG for each; empty where there is neither a range nor a limit."""
    low, high = _axis(found)
    return tuple(_bar(one, low, high) for one in found)


def _axis(found: Sequence[Bar]) -> tuple[float, float]:
    """From where to where: all that matters, and not so far that the metric that decides is a dot."""
    matters = [end for one in found if one.decides for end in _ends(one)]
    matters += [one.limit for one in found if one.limit is not None]
    ends = [end for one in found for end in _ends(one)] + matters
    reach = max(map(abs, matters), default=0.0) * WIDEST or math.inf
    left = min(reach, ROOM * -min(0.0, 0.0, *ends))
    right = min(reach, ROOM * max(0.0, 0.0, *ends))
    left, right = max(left, LEAST_SIDE * right), max(right, LEAST_SIDE * left)
    return (-left, right) if left or right else (-1.0, 1.0)


def _ends(one: Bar) -> list[float]:
    return [end for end in one.gain or () if math.isfinite(end)]


def _bar(one: Bar, low: float, high: float) -> str:
    if one.gain is None and one.limit is None:
        return ""

    def place(value: float) -> float:
        return BAR * (min(max(value, low), high) - low) / (high - low)

    parts = [f'<svg class="range {one.tone}" viewBox="0 0 {BAR:g} 24" aria-hidden="true">']
    if one.limit is not None:
        parts.append(f'<rect class="beyond" width="{place(one.limit):.1f}" height="24"/>')
    parts.append(f'<path class="rule zero" d="M{place(0.0):.1f} 0V24"/>')
    if one.gain is not None:
        effect, worst, best = map(place, one.gain)
        parts.append(f'<rect x="{worst:.1f}" y="7" width="{max(best - worst, 1.0):.1f}" height="10"/>')
        parts.append(f'<circle cx="{effect:.1f}" cy="12" r="5"/>')
    return "".join([*parts, "</svg>"])
