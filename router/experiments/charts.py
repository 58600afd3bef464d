"""A report's charts as SVG text: effects, shares and units over time.

A chart is bands, lines, rules and ticks, with colours from the page's style sheet.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from router.experiments.words import quantity
from router.quantities import MINUS

if TYPE_CHECKING:
    from router.experiments.report.model import PlotPoint, Report

WIDTH, HEIGHT = 760.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 120.0, 14.0, 34.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
STEPS = [
    *(1.0, 2.0, 5.0, 10.0, 30.0, MINUTE, 2 * MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR),
    *(6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY),
]
COLORS = 6
MOST_STRETCHES = 40
WriteNumber = Callable[[float], str]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class PlotSeries:
    """A line of (x, y) and a band of (x, low, high); `color` is a class of the style sheet."""

    name: str
    color: str
    line: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class PlotRule:
    """A horizontal line that means something."""

    y: float
    name: str
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """What is drawn, over unix seconds `x` and values `y` (low, high). `number` writes a value."""

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    number: WriteNumber
    series: Sequence[PlotSeries]
    rules: Sequence[PlotRule] = field(default=())


def color(report: Report, arm: str) -> str:
    """The arm's class; control is grey."""
    spec = report.experiment.spec
    names = [a.name for a in spec.arms if a.name != spec.control]
    return f"c{names.index(arm) % COLORS + 1}" if arm in names else "c0"


def effect_chart(report: Report) -> str:
    """Effect and interval of all arms; empty where there is no point with an effect."""
    found = {arm: points for arm in _treatments(report) if (points := _effects(report, arm))}
    return _effects_chart(report, found, "effect", quantity(report.judged.spec.primary).axis)


def lift_chart(report: Report, arm: str, name: str) -> str:
    """One arm's effect and interval over time, as a share of control's value where that is known."""
    found = _effects(report, arm)
    if not (shares := relative_points(report, arm)):
        return _effects_chart(report, {arm: found}, name, quantity(report.judged.spec.primary).axis)
    return _effects_chart(report, {arm: shares}, name, _percent_text, relative=True)


def _percent_text(value: float) -> str:
    return f"{value:+.3g} %".replace("-", MINUS) if value else "0"


def relative_points(report: Report, arm: str) -> list[PlotPoint]:
    """Those of the arm with a relative effect, in percent; none of a share, whose effect is in points."""
    if report.judged.spec.primary.kind.rules.binary:
        return []
    return [
        replace(p, effect=100 * p.relative, low=100 * p.relative_low, high=100 * p.relative_high)
        for p in _effects(report, arm)
        if p.relative is not None and p.relative_low is not None and p.relative_high is not None
    ]


def _treatments(report: Report) -> list[str]:
    spec = report.experiment.spec
    return [arm.name for arm in spec.arms if arm.name != spec.control]


def _effects(report: Report, arm: str) -> list[PlotPoint]:
    """Those that had their window when the report was made."""
    end = report.time - report.experiment.spec.closing
    return [p for p in _points_of(report, arm) if p.time <= end and math.isfinite(p.effect)]


def _points_of(report: Report, arm: str) -> list[PlotPoint]:
    return [point for point in report.points if point.arm == arm]


def _effects_chart(
    report: Report,
    found: dict[str, list[PlotPoint]],
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
        PlotSeries(
            arm,
            color(report, arm),
            [(p.time, p.effect) for p in points],
            [(p.time, p.low, p.high) for p in points if not _missing(p)],
        )
        for arm, points in found.items()
    ]
    rules = [PlotRule(0.0, "no difference", "zero")]
    if spec.margin and not relative:
        sign = -1 if spec.primary.higher_is_better else 1
        rules.append(PlotRule(sign * spec.margin, "margin", "limit"))
    x = (min(p.time for p in drawn), max(p.time for p in drawn))
    title = f"difference of {spec.primary.name} from {spec.control}, with its interval, over time"
    return draw(Chart(title, x, _effect_range(series, rules), number, series, rules), name)


def _missing(point: PlotPoint) -> bool:
    """No bounds at all; infinite ones are cut at the frame."""
    return math.isnan(point.low) or math.isnan(point.high)


def _effect_range(arms: Iterable[PlotSeries], rules: Sequence[PlotRule]) -> Bounds:
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
    series = [_share_series(report, arm.name, arm.weight, faint) for arm in arms]
    first = times[len(times) // 4]  # early bounds are wide and may be cut
    found = [v for one in series for x, low, high in one.band if x >= first for v in (low, high)]
    found += [y for one in series for x, y in one.line if x >= first]
    room = 1.15 * max(map(abs, found)) or 1.0
    title = "share of all units by arm, less the planned one; outside of its band is the alarm"
    rules = [PlotRule(0.0, "planned", "zero")]
    return draw(Chart(title, (times[0], times[-1]), (-room, room), _points_text, series, rules), "shares")


def _share_series(report: Report, arm: str, weight: float, faint: str) -> PlotSeries:
    points = _points_of(report, arm)
    return PlotSeries(
        arm,
        color(report, arm) + faint,
        [(p.time, p.share - weight) for p in points],
        [(p.time, p.share_low - weight, p.share_high - weight) for p in points],
    )


def _points_text(value: float) -> str:
    return f"{100 * value:+.3g}".replace("-", MINUS) if value else "0"


def units_chart(report: Report) -> str:
    """Units of each arm until each time; empty where there are none over time."""
    series = [
        PlotSeries(
            arm.name, color(report, arm.name), [(p.time, p.units) for p in _points_of(report, arm.name)]
        )
        for arm in report.experiment.spec.arms
    ]
    return _count_chart(series, "units of each arm until each time", "units")


def new_units_chart(report: Report) -> tuple[str, float]:
    """New units of each arm in stretches of equal length, and how many seconds those are."""
    times = sorted({p.time for p in report.points})
    if len(times) < 2:
        return "", 0.0
    start = _counting_from(report, times)
    step = next((s for s in STEPS if (times[-1] - start) / s <= MOST_STRETCHES), STEPS[-1])
    ends = [start + step * i for i in range(1, int((times[-1] - start) / step + 1e-9) + 1)]
    series = [
        PlotSeries(arm.name, color(report, arm.name), list(_stair(start, ends, _points_of(report, arm.name))))
        for arm in report.experiment.spec.arms
    ]
    return _count_chart(series, "new units of each arm over time", "new-units"), step


def _counting_from(report: Report, times: Sequence[float]) -> float:
    """Where counting began: the phase's start, unless the points say otherwise."""
    phase = next((p for p in report.experiment.phases if p.number == report.phase), None)
    step = (times[-1] - times[0]) / (len(times) - 1)
    first = times[0] - step
    return max(phase.started, first) if phase and phase.started < times[0] else first


def _stair(start: float, ends: Sequence[float], points: Sequence[PlotPoint]) -> Iterator[tuple[float, float]]:
    """A stair of what came in between one end and the next."""
    times, units = [start, *(p.time for p in points)], [0.0, *(float(p.units) for p in points)]
    before = 0.0
    for end in ends:
        until = _units_until(times, units, end)
        yield start, until - before
        yield end, until - before
        start, before = end, until


def _units_until(times: Sequence[float], units: Sequence[float], time: float) -> float:
    """Units until a time that may lie between two points."""
    at = bisect_right(times, time)
    if at >= len(times):
        return units[-1]
    part = (time - times[at - 1]) / ((times[at] - times[at - 1]) or 1.0)
    return units[at - 1] + part * (units[at] - units[at - 1])


def _count_chart(series: Sequence[PlotSeries], title: str, name: str) -> str:
    xs = [x for one in series for x, _ in one.line]
    most = max((y for one in series for _, y in one.line), default=0.0)
    if len(set(xs)) < 2 or most <= 0:
        return ""
    return draw(Chart(title, (min(xs), max(xs)), (0.0, 1.06 * most), _short_count, series), name)


def _short_count(value: float) -> str:
    """Short, since ticks have little room.

    >>> _count(5000), _count(15000), _count(2.5e6)
    ('5k', '15k', '2.5M')
    """
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def draw(chart: Chart, name: str) -> str:
    """The chart; `name` is an id that no other chart of the page has."""
    return "\n".join(_parts(chart, name))


def _parts(chart: Chart, name: str) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(chart.title)}">'
    yield f'<clipPath id="{name}"><rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" '
    yield f'height="{bottom - TOP}"/></clipPath>'
    for value in ticks(*chart.y):
        y = _y(chart, value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
        yield f"{escape(chart.number(value))}</text>"
    for time, text in times(*chart.x):
        x = _x(chart, time)
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 22}" text-anchor="middle">{text}</text>'
    yield f'<path class="axis" d="M{LEFT} {bottom}H{right}"/><g clip-path="url(#{name})">'
    for one in chart.series:
        yield _band(chart, one)
        yield _line(chart, one)
    for rule in chart.rules:
        yield f'<path class="rule {rule.kind}" d="M{LEFT} {_y(chart, rule.y):.1f}H{right}"/>'
    yield "</g>"
    yield from _labels(chart)
    yield "</svg>"


def _x(chart: Chart, value: float) -> float:
    low, high = chart.x
    return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - RIGHT - LEFT)


def _y(chart: Chart, value: float) -> float:
    low, high = chart.y
    return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1.0) * (HEIGHT - BOTTOM - TOP)


def _line(chart: Chart, one: PlotSeries) -> str:
    points = " ".join(f"{_x(chart, x):.1f},{_y(chart, y):.1f}" for x, y in one.line)
    return f'<polyline class="line {one.color}" points="{points}"/>' if points else ""


def _band(chart: Chart, one: PlotSeries) -> str:
    if not one.band:
        return ""
    upper = [f"{_x(chart, x):.1f},{_far(chart, high):.1f}" for x, _, high in one.band]
    lower = [f"{_x(chart, x):.1f},{_far(chart, low):.1f}" for x, low, _ in reversed(one.band)]
    return f'<polygon class="band {one.color}" points="{" ".join(upper + lower)}"/>'


def _far(chart: Chart, value: float) -> float:
    """A place that may be outside, but not so far that viewers lose it."""
    return min(max(_y(chart, value), -HEIGHT), 2 * HEIGHT)


def _labels(chart: Chart) -> Iterator[str]:
    """Names of lines and rules at the right edge, moved apart where they would overlap."""
    wanted = [(_y(chart, one.line[-1][1]), one.name, one.color) for one in chart.series if one.line]
    wanted += [(_y(chart, rule.y), rule.name, f"name {rule.kind}") for rule in chart.rules if rule.name]
    last = -math.inf
    for y, text, kind in sorted(wanted):
        last = max(min(max(y, TOP), HEIGHT - BOTTOM), last + 15)
        yield f'<text class="name {kind}" x="{WIDTH - RIGHT + 8}" y="{last + 4:.1f}">{escape(text)}</text>'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high]."""
    span = (high - low) or 1.0
    size = 10 ** math.floor(math.log10(span / most))
    step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def times(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times within [low, high], in UTC, with their labels."""
    step = next((s for s in STEPS if (high - low) / s <= most), STEPS[-1])
    form = "%d %b" if step >= DAY else "%d %b %H:%M" if high - low > DAY else "%H:%M"
    form = "%H:%M:%S" if step < MINUTE else form
    found = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(time, datetime.fromtimestamp(time, UTC).strftime(form)) for time in found]
