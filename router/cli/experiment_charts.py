"""Charts of a report: effect and sample ratio over time, and how a guardrail lies to its margin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from router.cli import experiment_numbers as numbers
from router.cli.svg import Chart, Rule, Series, draw

if TYPE_CHECKING:
    from router.experiments.report.model import Measured, Point, Report

COLORS = 6
WIDE, HALF_HEIGHT = 180.0, 11.0


def color(report: Report, arm: str) -> str:
    """The arm's class; control is grey."""
    spec = report.experiment.spec
    if arm == spec.control:
        return "c0"
    return f"c{[a.name for a in spec.arms if a.name != spec.control].index(arm) % COLORS + 1}"


def effect_chart(report: Report) -> str:
    """Effect and interval by arm; empty where there is no point with an effect."""
    spec, end = report.experiment.spec, report.time - report.experiment.spec.window
    arms = [arm.name for arm in spec.arms if arm.name != spec.control]
    found = {arm: [p for p in _of(report, arm) if p.time <= end and math.isfinite(p.effect)] for arm in arms}
    drawn = [p for points in found.values() for p in points]
    if len({p.time for p in drawn}) < 2:
        return ""
    series = [
        Series(
            arm,
            color(report, arm),
            [(p.time, p.effect) for p in points],
            [(p.time, p.low, p.high) for p in points if math.isfinite(p.high)],
        )
        for arm, points in found.items()
    ]
    rules = [Rule(0.0, "no difference", "zero")]
    if spec.margin:
        sign = -1 if spec.primary.higher_is_better else 1
        rules.append(Rule(sign * spec.margin, "margin", "limit"))
    x = (min(p.time for p in drawn), max(p.time for p in drawn))
    title = f"difference of {spec.primary.name} from {spec.control}, with its interval, over time"
    return draw(Chart(title, x, _range(found.values(), rules), numbers.signed, series, rules), "effect")


def _of(report: Report, arm: str) -> list[Point]:
    return [point for point in report.points if point.arm == arm]


def _range(arms: Iterable[Sequence[Point]], rules: Sequence[Rule]) -> tuple[float, float]:
    """Room for the later half of the intervals; early ones are wide and may be cut."""
    values = [rule.y for rule in rules]
    for points in arms:
        later = points[len(points) // 2 :]
        values += [bound for p in later for bound in (p.low, p.high) if math.isfinite(bound)]
        values += [p.effect for p in later]
    low, high = min(values), max(values)
    room = 0.08 * ((high - low) or 1.0)
    return low - room, high + room


def share_chart(report: Report) -> str:
    """Each arm's share of units less the planned one, with the bounds of the sample-ratio test; empty where
    that is not tested. Of two arms only one is drawn, since the other is its mirror image."""
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
    room = 1.15 * max(map(abs, found))
    title = "share of all units by arm, less the planned one; outside of its band is the alarm"
    chart = Chart(
        title, (times[0], times[-1]), (-room, room), _points, series, [Rule(0.0, "planned", "zero")]
    )
    return draw(chart, "shares")


def _share(report: Report, arm: str, weight: float, faint: str) -> Series:
    points = _of(report, arm)
    return Series(
        arm,
        color(report, arm) + faint,
        [(p.time, p.share - weight) for p in points],
        [(p.time, p.share_low - weight, p.share_high - weight) for p in points],
    )


def _points(value: float) -> str:
    return f"{100 * value:+.3g} pts" if value else "0"


def guardrail_bar(found: Measured) -> str:
    """The interval of a guardrail's difference, with 0 and the margin as marks."""
    worse = -1 if found.higher_is_better else 1
    limit = worse * found.margin * (abs(found.values[0]) if found.margin_relative else 1.0)
    bounds = [b for b in (found.low, found.high) if math.isfinite(b)]
    reach = max(map(abs, [limit, found.effect, *bounds])) * 1.15 or 1.0

    def x(value: float) -> float:
        return WIDE / 2 + min(max(value / reach, -1.0), 1.0) * WIDE / 2

    parts = [f'<svg class="bar" viewBox="0 0 {WIDE:g} {2 * HALF_HEIGHT:g}" role="img" aria-label="interval">']
    parts.append(f'<path class="rule zero" d="M{x(0):.1f} 0V{2 * HALF_HEIGHT}"/>')
    parts.append(f'<path class="rule limit" d="M{x(limit):.1f} 0V{2 * HALF_HEIGHT}"/>')
    if len(bounds) == 2:
        parts.append(f'<path class="span" d="M{x(found.low):.1f} {HALF_HEIGHT}H{x(found.high):.1f}"/>')
    parts.append(f'<circle class="dot" cx="{x(found.effect):.1f}" cy="{HALF_HEIGHT}" r="4"/></svg>')
    return "".join(parts)
