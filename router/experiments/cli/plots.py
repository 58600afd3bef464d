"""A report's charts as SVG text: effects, shares and units over time, and guardrails beside their margins."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from router.cli.svg import STEPS, Chart, Rule, Series, draw
from router.experiments.cli import wording

if TYPE_CHECKING:
    from router.experiments.report.model import Measured, Point, Report

COLORS = 6
WIDE, HALF_HEIGHT = 180.0, 11.0
MOST_STRETCHES = 40
Bounds = tuple[float, float]


def color(report: Report, arm: str) -> str:
    """The arm's class; control is grey."""
    spec = report.experiment.spec
    names = [a.name for a in spec.arms if a.name != spec.control]
    return f"c{names.index(arm) % COLORS + 1}" if arm in names else "c0"


def effect_chart(report: Report) -> str:
    """Effect and interval of all arms; empty where there is no point with an effect."""
    found = {arm: points for arm in _treatments(report) if (points := _effects(report, arm))}
    return _lift(report, found, "effect", wording.signed)


def lift_chart(report: Report, arm: str, name: str) -> str:
    """One arm's effect and interval over time, as a share of control's value where that is known."""
    found = _effects(report, arm)
    if not (shares := relative_points(report, arm)):
        return _lift(report, {arm: found}, name, wording.signed)
    return _lift(report, {arm: shares}, name, lambda value: f"{value:+.3g}%" if value else "0", relative=True)


def relative_points(report: Report, arm: str) -> list[Point]:
    """Those of the arm that have a relative effect, in percent."""
    return [
        replace(p, effect=100 * p.relative, low=100 * p.relative_low, high=100 * p.relative_high)
        for p in _effects(report, arm)
        if p.relative is not None and p.relative_low is not None and p.relative_high is not None
    ]


def _treatments(report: Report) -> list[str]:
    spec = report.experiment.spec
    return [arm.name for arm in spec.arms if arm.name != spec.control]


def _effects(report: Report, arm: str) -> list[Point]:
    """Those that had their window when the report was made."""
    end = report.time - report.experiment.spec.closing
    return [p for p in _of(report, arm) if p.time <= end and math.isfinite(p.effect)]


def _of(report: Report, arm: str) -> list[Point]:
    return [point for point in report.points if point.arm == arm]


def _lift(
    report: Report,
    found: dict[str, list[Point]],
    name: str,
    number: Callable[[float], str],
    relative: bool = False,
) -> str:
    """A margin is in the metric's own unit, so it has no place beside relative effects."""
    spec = report.experiment.spec
    drawn = [p for points in found.values() for p in points]
    if len({p.time for p in drawn}) < 2:
        return ""
    series = [
        Series(
            arm,
            color(report, arm),
            [(p.time, p.effect) for p in points],
            [(p.time, p.low, p.high) for p in points if not _missing(p)],
        )
        for arm, points in found.items()
    ]
    rules = [Rule(0.0, "no difference", "zero")]
    if spec.margin and not relative:
        sign = -1 if spec.primary.higher_is_better else 1
        rules.append(Rule(sign * spec.margin, "margin", "limit"))
    x = (min(p.time for p in drawn), max(p.time for p in drawn))
    title = f"difference of {spec.primary.name} from {spec.control}, with its interval, over time"
    return draw(Chart(title, x, _range(series, rules), number, series, rules), name)


def _missing(point: Point) -> bool:
    """No bounds at all; infinite ones are cut at the frame."""
    return math.isnan(point.low) or math.isnan(point.high)


def _range(arms: Iterable[Series], rules: Sequence[Rule]) -> Bounds:
    """Room for the later half of the intervals; early ones are wide and may be cut."""
    values = [rule.y for rule in rules]
    for one in arms:
        half = len(one.line) // 2
        values += [bound for _, *both in one.band[half:] for bound in both if math.isfinite(bound)]
        values += [y for _, y in one.line[half:]]
    low, high = min(values), max(values)
    room = 0.08 * ((high - low) or 1.0)
    return low - room, high + room


def share_chart(report: Report) -> str:
    """Each arm's share of units less the planned one, with the bounds of the sample-ratio test.

    Empty where that is not tested. Of two arms only one is drawn, since the other is its mirror image.
    """
    times = sorted({p.time for p in report.points})
    if len(times) < 2 or all(p.share_low <= 0 and p.share_high >= 1 for p in report.points):
        return ""
    spec = report.experiment.spec
    arms = [arm for arm in spec.arms if len(spec.arms) > 2 or arm.name != spec.control]
    faint = " faint" if len(arms) > 1 else ""
    series = [_share(report, arm.name, arm.weight, faint) for arm in arms]
    first = times[len(times) // 4]  # early bounds are wide and may be cut
    found = [v for one in series for x, low, high in one.band if x >= first for v in (low, high)]
    found += [y for one in series for x, y in one.line if x >= first]
    room = 1.15 * max(map(abs, found)) or 1.0
    title = "share of all units by arm, less the planned one; outside of its band is the alarm"
    rules = [Rule(0.0, "planned", "zero")]
    return draw(Chart(title, (times[0], times[-1]), (-room, room), _percent, series, rules), "shares")


def _share(report: Report, arm: str, weight: float, faint: str) -> Series:
    points = _of(report, arm)
    return Series(
        arm,
        color(report, arm) + faint,
        [(p.time, p.share - weight) for p in points],
        [(p.time, p.share_low - weight, p.share_high - weight) for p in points],
    )


def _percent(value: float) -> str:
    return f"{100 * value:+.3g} pts" if value else "0"


def units_chart(report: Report) -> str:
    """Units of each arm until each time; empty where there are none over time."""
    series = [
        Series(arm.name, color(report, arm.name), [(p.time, p.units) for p in _of(report, arm.name)])
        for arm in report.experiment.spec.arms
    ]
    return _counts(series, "units of each arm until each time", "units")


def new_units_chart(report: Report) -> tuple[str, float]:
    """New units of each arm in stretches of equal length, and how many seconds those are."""
    times = sorted({p.time for p in report.points})
    if len(times) < 2:
        return "", 0.0
    start = _started(report, times)
    step = next((s for s in STEPS if (times[-1] - start) / s <= MOST_STRETCHES), STEPS[-1])
    ends = [start + step * i for i in range(1, int((times[-1] - start) / step + 1e-9) + 1)]
    series = [
        Series(arm.name, color(report, arm.name), list(_steps(start, ends, _of(report, arm.name))))
        for arm in report.experiment.spec.arms
    ]
    return _counts(series, "new units of each arm over time", "new-units"), step


def _started(report: Report, times: Sequence[float]) -> float:
    """Where counting began: the phase's start, unless the points say otherwise."""
    phase = next((p for p in report.experiment.phases if p.number == report.phase), None)
    step = (times[-1] - times[0]) / (len(times) - 1)
    first = times[0] - step
    return max(phase.started, first) if phase and phase.started < times[0] else first


def _steps(start: float, ends: Sequence[float], points: Sequence[Point]) -> Iterator[tuple[float, float]]:
    """A stair of what came in between one end and the next."""
    times, units = [start, *(p.time for p in points)], [0.0, *(float(p.units) for p in points)]
    before = 0.0
    for end in ends:
        until = _between(times, units, end)
        yield start, until - before
        yield end, until - before
        start, before = end, until


def _between(times: Sequence[float], units: Sequence[float], time: float) -> float:
    """Units until a time that may lie between two points."""
    at = bisect_right(times, time)
    if at >= len(times):
        return units[-1]
    part = (time - times[at - 1]) / ((times[at] - times[at - 1]) or 1.0)
    return units[at - 1] + part * (units[at] - units[at - 1])


def _counts(series: Sequence[Series], title: str, name: str) -> str:
    xs = [x for one in series for x, _ in one.line]
    most = max((y for one in series for _, y in one.line), default=0.0)
    if len(set(xs)) < 2 or most <= 0:
        return ""
    return draw(Chart(title, (min(xs), max(xs)), (0.0, 1.06 * most), _count, series), name)


def _count(value: float) -> str:
    """Short, since ticks have little room.

    >>> _count(5000), _count(15000), _count(2.5e6)
    ('5k', '15k', '2.5M')
    """
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def guardrail_bar(found: Measured) -> str:
    """The interval of a guardrail's difference, with 0 and the margin as marks."""
    worse = -1 if found.higher_is_better else 1
    limit = worse * found.margin * (abs(found.values[0]) if found.margin_relative else 1.0)
    effect = found.effect if math.isfinite(found.effect) else 0.0
    limit = limit if math.isfinite(limit) else 0.0
    bounds = [b for b in (found.low, found.high) if math.isfinite(b)]
    reach = max(map(abs, [limit, effect, *bounds])) * 1.15 or 1.0

    def x(value: float) -> float:
        return WIDE / 2 + min(max(value / reach, -1.0), 1.0) * WIDE / 2

    parts = [f'<svg class="bar" viewBox="0 0 {WIDE:g} {2 * HALF_HEIGHT:g}" role="img" aria-label="interval">']
    parts.append(f'<path class="rule zero" d="M{x(0):.1f} 0V{2 * HALF_HEIGHT}"/>')
    parts.append(f'<path class="rule limit" d="M{x(limit):.1f} 0V{2 * HALF_HEIGHT}"/>')
    if len(bounds) == 2:
        parts.append(f'<path class="span" d="M{x(found.low):.1f} {HALF_HEIGHT}H{x(found.high):.1f}"/>')
    parts.append(f'<circle class="dot" cx="{x(effect):.1f}" cy="{HALF_HEIGHT}" r="4"/></svg>')
    return "".join(parts)
