"""A report as one HTML page that needs nothing else: no other file, no network, no script.

Its charts show effect and sample ratio over time, and how a guardrail lies to its margin; its words are
explained for readers who are no statisticians.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from router.cli.svg import Chart, Rule, Series, draw
from router.experiments.cli import wording
from router.experiments.cli.report import beside, following, heading, since
from router.experiments.cli.wording import at, metric_line, pairs_of

if TYPE_CHECKING:
    from router.experiments.report.model import ArmReport, Measured, Point, Report

TONES = {"promote": "promote", "stop for harm": "harm", "undecided": "undecided", "invalid": "invalid"}
COLORS = 6
WIDE, HALF_HEIGHT = 180.0, 11.0


def page(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("router.experiments.cli"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return found.get_template("report.html.j2").render(**_values(report))


def _values(report: Report) -> dict[str, Any]:
    from markupsafe import Markup

    experiment, spec = report.experiment, report.experiment.spec
    return {
        "name": experiment.name,
        "hypothesis": spec.hypothesis,
        "state": since(report),
        "head": heading(report),
        "tone": TONES.get(report.verdict.decision, "undecided"),
        "verdict": report.verdict,
        "rulings": _rulings(report),
        "next": following(report),
        "failed": [check for check in report.checks if check.failed],
        "metric": metric_line(spec.primary),
        "primary": spec.primary.name,
        "control": spec.control,
        "level": wording.level(spec.alpha).lower(),
        "effect_chart": Markup(effect_chart(report)),  # noqa: S704 -- texts in it are escaped where it is drawn
        "share_chart": Markup(share_chart(report)),  # noqa: S704
        "effects": _effects(report),
        "beside": [f"{arm.arm}: {line}" for arm in report.arms for line in beside(arm)],
        "meters": _meters(report),
        "pairs": [_pairs(arm) for arm in report.arms if arm.pairs],
        "rails": _rails(report),
        "columns": [t.lower() for t in (*wording.COUNTS, *(title for title, _, _ in wording.BUILT_IN))],
        "arms": _arms(report),
        "checks": report.checks,
        "notes": report.notes,
        "plan": pairs_of(experiment),
        "audit": _audit(report),
        "words": WORDS,
    }


def _rulings(report: Report) -> list[dict[str, str]]:
    return [
        {
            "arm": arm.arm,
            "color": color(report, arm.arm),
            "decision": arm.verdict.decision,
            "rule": arm.verdict.rule,
            "tone": TONES.get(arm.verdict.decision, "undecided"),
        }
        for arm in report.arms
    ]


def _effects(report: Report) -> list[dict[str, str]]:
    measured = [arm.primary for arm in report.arms if arm.primary]
    blank = dict.fromkeys(("difference", "interval", "relative", "p", "method", "verdict", "tone"), "")
    control = report.experiment.spec.control
    first = [
        {
            **blank,
            "arm": control,
            "color": color(report, control),
            "units": f"{found.units[0]:,}",
            "value": wording.plain(found.values[0]),
        }
        for found in measured[:1]
    ]
    return first + [_effect(report, arm) for arm in report.arms if arm.primary]


def _effect(report: Report, arm: ArmReport) -> dict[str, str]:
    found = arm.primary
    if found is None:
        return {}
    return {
        "arm": arm.arm,
        "color": color(report, arm.arm),
        "units": f"{found.units[1]:,}",
        "value": wording.plain(found.values[1]),
        "difference": wording.signed(found.effect),
        "interval": wording.interval(found.low, found.high),
        "relative": wording.relative(found),
        "p": wording.chance(arm.adjusted_p),
        "method": found.method,
        "verdict": arm.verdict.decision,
        "tone": TONES.get(arm.verdict.decision, "undecided"),
    }


def _meters(report: Report) -> list[dict[str, str]]:
    """The primary metric of each arm as a bar, the largest one whole."""
    spec = report.experiment.spec
    values = {arm.arm: arm.primary.values[1] for arm in report.arms if arm.primary}
    if not values:
        return []
    values[spec.control] = next(arm.primary.values[0] for arm in report.arms if arm.primary)
    most = max(map(abs, values.values())) or 1.0
    return [
        {
            "arm": one.arm,
            "color": color(report, one.arm),
            "width": f"{100 * abs(values[one.arm]) / most:.1f}",
            "value": wording.plain(values[one.arm]),
            "units": f"{one.matured:,}",
            "answered": f"{one.answered.get(spec.primary.name, 0):,}",
        }
        for one in report.numbers
        if one.arm in values
    ]


def _pairs(arm: ArmReport) -> dict[str, str]:
    pairs = arm.pairs
    if pairs is None:
        return {}
    return {
        "arm": arm.arm,
        "wins": f"{pairs.wins:,}",
        "losses": f"{pairs.losses:,}",
        "ties": f"{pairs.ties:,}",
        "share": f"{pairs.share:.1%}",
        "interval": f"[{pairs.low:.1%}, {pairs.high:.1%}]",
        "p": wording.chance(pairs.p),
    }


def _rails(report: Report) -> list[dict[str, str]]:
    from markupsafe import Markup

    return [
        {
            "metric": rail.metric,
            "arm": arm.arm,
            "control": wording.plain(rail.values[0]),
            "value": wording.plain(rail.values[1]),
            "difference": wording.signed(rail.effect),
            "interval": wording.interval(rail.low, rail.high),
            "bar": Markup(guardrail_bar(rail)),  # noqa: S704 -- numbers only
            "margin": wording.margin(rail),
            "state": rail.state,
        }
        for arm in report.arms
        for rail in arm.guardrails
    ]


def _arms(report: Report) -> list[dict[str, Any]]:
    return [{"color": color(report, arm.arm), "cells": wording.cells(report, arm)} for arm in report.numbers]


def _audit(report: Report) -> list[dict[str, str]]:
    return [
        {
            "when": at(entry.time),
            "actor": entry.actor,
            "act": entry.act,
            "reason": entry.reason,
            "detail": json.dumps(dict(entry.detail), ensure_ascii=False) if entry.detail else "",
        }
        for entry in report.audit
    ]


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
    return draw(Chart(title, x, _range(found.values(), rules), wording.signed, series, rules), "effect")


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


WORDS = (
    (
        "unit",
        "Who has the same experience throughout, such as a user. Everything is counted by unit, never by"
        " request.",
    ),
    ("arm, control", "One of the things compared; control is the one that the others are compared with."),
    ("promote", "The arm is shown to be better, no guardrail is in doubt, and all checks are sound."),
    ("stop for harm", "The arm is shown to be worse, on the primary metric or beyond a guardrail's margin."),
    ("undecided", "Nothing is shown yet, in either direction. This is not the same as no difference."),
    ("invalid", "A check of the pipeline failed; numbers of a broken pipeline say nothing about the arms."),
    (
        "interval",
        "All differences that the data do not rule out. It holds at every look, so looking often and stopping"
        " early are fine; the usual interval, for a single look at the end, would be narrower.",
    ),
    (
        "p",
        "How surprising the data would be if there were no difference; valid at every look, and adjusted for"
        " the number of arms (Holm).",
    ),
    (
        "asymptotic, exact",
        "Where the interval comes from: exact for proportions at any number of units, used early; close to it"
        " from 100 units in each arm. Burn-in: too early for any interval.",
    ),
    (
        "window, mature",
        "Outcomes count for this long after a unit was first served; then the unit is mature. Only mature"
        " units are compared.",
    ),
    (
        "guardrail",
        "A metric that must not get worse by more than its margin. Within: shown not to be; beyond: shown to"
        " be; open: neither yet.",
    ),
    (
        "sample ratio",
        "Arms must get their planned shares of units. If they do not, units were lost, and who is lost is not"
        " left to chance.",
    ),
    (
        "degraded",
        "The arm could not answer and something else did. The unit stays in its arm, or a broken arm would"
        " look good.",
    ),
    (
        "equal answer length",
        "People and judges prefer long answers whatever they say. This is the difference that is left when"
        " lengths are made equal; a gain that vanishes here may be nothing but length."
        " Its ± is a usual 95 % interval, for one look, and it gives no verdict.",
    ),
)
