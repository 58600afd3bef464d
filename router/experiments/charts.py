"""A report's chart as SVG text: effects over time.

A chart is bands, lines, rules and ticks, with colours from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from router.experiments.words import quantity

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
    """Effect and interval of all arms over time; empty where there is no point with an effect."""
    spec = report.experiment.spec
    end = report.time - spec.closing  # later units did not have their window when the report was made
    drawn = [p for p in report.points if p.time <= end and math.isfinite(p.effect)]
    if len({p.time for p in drawn}) < 2:
        return ""
    series = []
    for arm in dict.fromkeys(p.arm for p in drawn):
        points = [p for p in drawn if p.arm == arm]
        band = [(p.time, p.low, p.high) for p in points if not _missing(p)]
        series.append(PlotSeries(arm, color(report, arm), [(p.time, p.effect) for p in points], band))
    rules = [PlotRule(0.0, "no difference", "zero")]
    if spec.margin:
        sign = -1 if spec.primary.higher_is_better else 1
        rules.append(PlotRule(sign * spec.margin, "margin", "limit"))
    x = (min(p.time for p in drawn), max(p.time for p in drawn))
    title = f"difference of {spec.primary.name} from {spec.control}, with its interval, over time"
    number = quantity(report.judged.spec.primary).axis
    return draw(Chart(title, x, _effect_range(series, rules), number, series, rules), "effect")


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
