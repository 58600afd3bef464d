"""The charts of a report as SVG text: the effect over time, and a bar for each range.

Colours are classes of the page's style sheet. Texts from outside are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from router.extensions.experiments.words import quantity

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import PlotPoint, Report

WIDTH, HEIGHT = 760.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 640.0, 14.0, 266.0  # of the plot
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
STEPS = [
    *(1.0, 2.0, 5.0, 10.0, 30.0, MINUTE, 2 * MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR),
    *(6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY),
]
COLORS = 4
BAR = 200.0  # the width of a range's bar
WIDEST = 3.0  # the axis of the bars reaches at most so many times as far as what decides, and the margins
ROOM, LEAST_SIDE = 1.12, 0.3  # beyond the furthest end; a side has this part of the other one at least
Gain = tuple[float, float, float]


def color(report: Report, arm: str) -> str:
    """The arm's class; control is grey."""
    spec = report.experiment.spec
    names = [a.name for a in spec.arms if a.name != spec.control]
    return f"c{names.index(arm) % COLORS + 1}" if arm in names else "c0"


# -- The effect over time


class _Frame(NamedTuple):
    """Times and effects at the edges of the plot."""

    first: float
    last: float
    low: float
    high: float

    def x(self, time: float) -> float:
        return LEFT + (time - self.first) / (self.last - self.first) * (RIGHT - LEFT)

    def y(self, effect: float) -> float:
        """A place that may be outside, but not so far that viewers lose it."""
        place = BOTTOM - (effect - self.low) / (self.high - self.low) * (BOTTOM - TOP)
        return min(max(place, -HEIGHT), 2 * HEIGHT)


def effect_chart(report: Report) -> str:
    """Effect and interval of all arms over time; empty where fewer than two times have an effect."""
    spec = report.experiment.spec
    end = report.time - spec.closing  # later units did not have their window when the report was made
    drawn = [p for p in report.points if p.time <= end and math.isfinite(p.effect)]
    times_ = sorted({p.time for p in drawn})
    if len(times_) < 2:
        return ""
    arms = {arm: [p for p in drawn if p.arm == arm] for arm in dict.fromkeys(p.arm for p in drawn)}
    rules = {"no difference": (0.0, "zero")}
    if spec.margin:
        rules["margin"] = (-spec.margin if spec.primary.higher_is_better else spec.margin, "limit")
    frame = _Frame(times_[0], times_[-1], *_reach(arms.values(), [y for y, _ in rules.values()]))
    return "\n".join(_drawn(report, frame, arms, rules))


def _reach(arms: Iterable[Sequence[PlotPoint]], rules: list[float]) -> tuple[float, float]:
    """Room for the later half of the intervals; early ones are wide and may be cut."""
    values = rules + [
        value
        for points in arms
        for point in points[len(points) // 2 :]
        for value in (point.effect, point.low, point.high)
        if math.isfinite(value)
    ]
    room = 0.08 * ((max(values) - min(values)) or 1.0)
    return min(values) - room, max(values) + room


def _drawn(
    report: Report,
    frame: _Frame,
    arms: dict[str, list[PlotPoint]],
    rules: dict[str, tuple[float, str]],
) -> Iterator[str]:
    spec = report.experiment.spec
    title = f"difference of {spec.primary.name} from {spec.control}, with its interval, over time"
    yield f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
    yield f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/>'
    yield "</clipPath>"
    number = quantity(report.judged.spec.primary).axis
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(number(value))}</text>'
    for time, text in times(frame.first, frame.last):
        yield f'<text x="{frame.x(time):.1f}" y="{BOTTOM + 22}" text-anchor="middle">{text}</text>'
    yield f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/><g clip-path="url(#plot)">'
    for arm, points in arms.items():
        banded = [p for p in points if not math.isnan(p.low) and not math.isnan(p.high)]
        upper = [f"{frame.x(p.time):.1f},{frame.y(p.high):.1f}" for p in banded]
        lower = [f"{frame.x(p.time):.1f},{frame.y(p.low):.1f}" for p in reversed(banded)]
        line = [f"{frame.x(p.time):.1f},{frame.y(p.effect):.1f}" for p in points]
        yield f'<polygon class="band {color(report, arm)}" points="{" ".join(upper + lower)}"/>'
        yield f'<polyline class="line {color(report, arm)}" points="{" ".join(line)}"/>'
    for y, kind in rules.values():
        yield f'<path class="rule {kind}" d="M{LEFT} {frame.y(y):.1f}H{RIGHT}"/>'
    yield "</g>"
    wanted = [(frame.y(points[-1].effect), arm, color(report, arm)) for arm, points in arms.items()]
    wanted += [(frame.y(y), name, kind) for name, (y, kind) in rules.items()]
    last = -math.inf
    for y, text, kind in sorted(wanted):  # names at the right edge, moved apart where they would overlap
        last = max(min(max(y, TOP), BOTTOM), last + 15)
        yield f'<text class="name {kind}" x="{RIGHT + 8}" y="{last + 4:.1f}">{escape(text)}</text>'
    yield "</svg>"


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


# -- Ranges on one axis


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
