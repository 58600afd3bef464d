"""All ranges of a report on one axis: the metric that decides, guardrails with their margins, then others.

A difference of shares is in points, any other one in percent of control's value, so that both are parts of
100. What is better lies to the right, whichever way is good for a metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from router.experiments import words
from router.experiments.charts import ticks
from router.quantities import SHARE

if TYPE_CHECKING:
    from router.experiments.report.model import ArmReport, MetricReport, Report

MOST_ROWS = 40
WIDEST = 3.0  # the axis reaches as many times as far as the metric that decides, and its margins
ROOM, LEAST_SIDE = 1.12, 0.3  # beyond the furthest end; a side has this part of the other one at least
DECIDES, GUARDS, TOLD = "decides", "must not get worse", "also measured"
TONES = {"✓": "ok", "✗": "bad"}
Gain = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A comparison in words, and where it lies: places are percent of the axis, None where not known.

    `limit` is the margin of a guardrail. A range that goes on beyond the axis is `cut` at that side (left,
    right).
    """

    metric: str
    arm: str
    role: str
    values: str
    change: str
    reading: str
    allowed: str
    tone: str
    at: float | None = None
    low: float = 0.0
    high: float = 0.0
    limit: float | None = None
    cut: tuple[bool, bool] = (False, False)


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows, and ticks as (place, text); `zero` is the place of no difference."""

    rows: tuple[ForestRow, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float


@dataclass(frozen=True, slots=True)
class _Measured:
    """A comparison on the common scale: `gain` is effect, low and high with better above zero."""

    row: ForestRow
    gain: Gain | None
    limit: float | None


def forest_of(report: Report) -> Forest | None:
    """None where nothing is compared yet, and of a shadow experiment, which compares nothing."""
    if report.judged.spec.mode == "shadow":
        return None
    found = list(_measured(report))[:MOST_ROWS]
    if not found:
        return None
    low, high = _axis(found)
    places = tuple(_placed(one, low, high) for one in found)
    if all(row.at is None for row in places):
        return Forest(places, (), 50.0)
    marks = tuple((_place(tick, low, high), f"{abs(tick):g}") for tick in ticks(low, high, 5))
    return Forest(places, marks, _place(0.0, low, high))


def _measured(report: Report) -> Iterator[_Measured]:
    for arm in report.arms:
        if arm.primary:
            yield _of(report, arm, arm.primary, DECIDES, words.primary_reading(report, arm))
    for role, pick in ((GUARDS, _rails), (TOLD, _secondary)):
        names = dict.fromkeys((one.metric, one.early) for arm in report.arms for one in pick(arm))
        for name in names:
            for arm in report.arms:
                for one in pick(arm):
                    if (one.metric, one.early) == name:
                        reads = words.guarded if role == GUARDS else words.reading
                        yield _of(report, arm, one, role, reads(report, one))


def _rails(arm: ArmReport) -> Sequence[MetricReport]:
    return arm.rails


def _secondary(arm: ArmReport) -> Sequence[MetricReport]:
    return arm.secondary


def _of(report: Report, arm: ArmReport, found: MetricReport, role: str, reading: str) -> _Measured:
    form, control = words.form_of(report.judged, found), report.judged.spec.control
    values = f"{form.value(found.values[1])} with {arm.arm}, {form.value(found.values[0])} with {control}"
    limit = f"at most {words.allowed(form, found)}" if found.margin else words.allowed(form, found)
    row = ForestRow(
        words.labelled(found),
        arm.arm if len(report.arms) > 1 else "",
        role,
        values,
        words.relative(found) or words.change(form, found)
        if form is not SHARE
        else words.change(form, found),
        reading,
        limit if role == GUARDS else "",
        TONES.get(reading[:1], ""),
    )
    share = form is SHARE
    return _Measured(row, _gain(found, share), _limit(found, share) if role == GUARDS else None)


def _gain(found: MetricReport, share: bool) -> Gain | None:
    """In points or percent."""
    values: tuple[float | None, ...] = (found.effect, found.low, found.high)
    if not share:
        values = (found.relative, found.relative_low, found.relative_high)
    effect, low, high = (math.nan if one is None else 100 * one for one in values)
    if not math.isfinite(effect) or math.isnan(low) or math.isnan(high):
        return None
    return (effect, low, high) if found.higher_is_better else (-effect, -high, -low)


def _limit(found: MetricReport, share: bool) -> float | None:
    """The margin on the scale of `_gain`; None where the metric must improve, or it cannot be placed."""
    control = abs(found.values[0])
    if not found.margin or not math.isfinite(control):
        return None
    if share:
        return -100 * found.margin * (control if found.margin_relative else 1.0)
    if found.margin_relative:
        return -100 * found.margin
    return -100 * found.margin / control if control else None


def _axis(found: Sequence[_Measured]) -> tuple[float, float]:
    """From where to where: all that matters, and not so far that the metric that decides is a dot."""
    matters = [end for one in found if one.row.role == DECIDES for end in _ends(one)]
    matters += [one.limit for one in found if one.limit is not None]
    ends = [end for one in found for end in _ends(one)] + matters
    reach = max(map(abs, matters), default=0.0) * WIDEST or math.inf
    left = min(reach, ROOM * -min(0.0, 0.0, *ends))
    right = min(reach, ROOM * max(0.0, 0.0, *ends))
    left, right = max(left, LEAST_SIDE * right), max(right, LEAST_SIDE * left)
    return (-left, right) if left or right else (-1.0, 1.0)


def _ends(one: _Measured) -> list[float]:
    return [end for end in one.gain or () if math.isfinite(end)]


def _place(value: float, low: float, high: float) -> float:
    return 100 * (min(max(value, low), high) - low) / (high - low)


def _placed(one: _Measured, low: float, high: float) -> ForestRow:
    limit = None if one.limit is None else _place(one.limit, low, high)
    if one.gain is None:
        return replace(one.row, limit=limit)
    effect, worst, best = one.gain
    return replace(
        one.row,
        at=_place(effect, low, high),
        low=_place(worst, low, high),
        high=_place(best, low, high),
        limit=limit,
        cut=(worst < low, best > high),
    )
