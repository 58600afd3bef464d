"""A report as one HTML page that needs nothing else: no other file, no network, no script.

Its charts show effect, units and sample ratio over time, and how a guardrail lies to its margin; its words
are explained for readers who are no statisticians.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router.experiments.cli import report as tables
from router.experiments.cli import wording
from router.experiments.cli.report import ReportTable
from router.experiments.cli.wording import MARK, at, following, heading, pairs_of, since
from router.extensions.experiments_page import plots
from router.extensions.experiments_page.plots import color

if TYPE_CHECKING:
    from markupsafe import Markup

    from router.experiments.report.model import Report

TONES = {"promote": "promote", "stop for harm": "harm", "undecided": "undecided", "invalid": "invalid"}
MARK_TITLE = "not for looking often: it has no interval that holds at every look"


def page(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("router.extensions.experiments_page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters["marked"] = marked
    return found.get_template("report.html.j2").render(**_values(report))


def marked(text: str) -> Markup:
    """Text whose daggers tell what they mean."""
    from markupsafe import Markup, escape

    dagger = Markup('<abbr title="{}">{}</abbr>').format(MARK_TITLE, MARK)
    return Markup(escape(text).replace(MARK, dagger))  # noqa: S704 -- escaped


def drawn(chart: str) -> Markup:
    """A chart; the texts in it are escaped where it is drawn."""
    from markupsafe import Markup

    return Markup(chart)  # noqa: S704


def _values(report: Report) -> dict[str, Any]:
    experiment, spec = report.experiment, report.experiment.spec
    return {
        "name": experiment.name,
        "hypothesis": spec.hypothesis,
        "holdout": wording.HOLDOUT if spec.mode == "holdout" else "",
        "state": since(report),
        "head": heading(report),
        "tone": TONES.get(report.verdict.decision, "undecided"),
        "tones": TONES,
        "verdict": report.verdict,
        "forecast": wording.forecast(report.forecast) if report.forecast else "",
        "rulings": _rulings(report),
        "next": following(report),
        "failed": [check for check in report.checks if check.failed],
        "legend": wording.LEGEND,
        "primary": spec.primary.name,
        "control": spec.control,
        "colors": {arm.name: color(report, arm.name) for arm in spec.arms},
        **_charts(report),
        **_tables(report),
        "meters": _meters(report),
        "notes": report.notes,
        "plan": pairs_of(experiment),
        "audit": _audit(report),
        "words": WORDS,
    }


def _charts(report: Report) -> dict[str, Any]:
    from router.experiments.report.source import duration

    fresh, step = plots.new_units_chart(report)
    return {
        "effect_chart": drawn(plots.effect_chart(report)),
        "lifts": _lifts(report),
        "anytime": all(arm.primary.anytime for arm in report.arms if arm.primary),
        "share_chart": drawn(plots.share_chart(report)),
        "units_chart": drawn(plots.units_chart(report)),
        "new_units_chart": drawn(fresh),
        "stretch": duration(step) if step else "",
    }


def _lifts(report: Report) -> list[dict[str, Any]]:
    """A chart for each arm, relative where that is known; one alone and absolute is the chart of all."""
    found = []
    for number, arm in enumerate(report.arms):
        relative = bool(plots.relative_points(report, arm.arm))
        if not relative and len(report.arms) < 2:
            continue
        if arm.primary and (chart := plots.lift_chart(report, arm.arm, f"lift-{number}")):
            now = [wording.effect(arm.primary), wording.relative(arm.primary)]
            found.append(
                {
                    "arm": arm.arm,
                    "chart": drawn(chart),
                    "axis": "in percent of its value" if relative else "",
                    "now": ", ".join(filter(None, now)),
                }
            )
    return found


def _tables(report: Report) -> dict[str, Any]:
    """The page's tables by name; guardrails have their bars before the margin."""
    rails = tables.guardrails(report)
    read = [rail for arm in report.arms for rail in (*arm.early, *arm.guardrails)]
    bars = [drawn(plots.guardrail_bar(rail)) for rail in read]
    columns = (*rails.columns[:6], ("", "bar"), *rails.columns[6:])
    rows = tuple((*row[:6], bar, *row[6:]) for row, bar in zip(rails.rows, bars, strict=True))
    shadow = report.experiment.spec.mode == "shadow"
    return {
        "effects": ReportTable("", (), ()) if shadow else tables.effects(report),
        "past": tables.past(report),
        "missing": tables.missing(report),
        "pairs": tables.pairs(report),
        "rails": replace(rails, columns=columns, rows=rows),
        "secondary": tables.secondary(report),
        "segments": list(tables.segments(report)),
        "checks": tables.checks(report),
        "numbers": tables.numbers(report),
    }


def _rulings(report: Report) -> list[dict[str, str]]:
    return [
        {"arm": arm.arm, "decision": arm.verdict.decision, "rule": arm.verdict.rule} for arm in report.arms
    ]


def _meters(report: Report) -> list[dict[str, str]]:
    """The primary metric of each arm as a bar, the largest one whole."""
    spec = report.experiment.spec
    values = {arm.arm: arm.primary.values[1] for arm in report.arms if arm.primary}
    if not values:
        return []
    values[spec.control] = next(arm.primary.values[0] for arm in report.arms if arm.primary)
    most = max((abs(value) for value in values.values() if math.isfinite(value)), default=0.0) or 1.0
    return [
        {
            "arm": one.arm,
            "color": color(report, one.arm),
            "width": f"{100 * abs(values[one.arm]) / most if math.isfinite(values[one.arm]) else 0:.1f}",
            "value": wording.marked(wording.plain(values[one.arm]), anytime=False),
            "units": f"{one.matured:,}",
            "answered": f"{one.answered.get(spec.primary.name, 0):,}",
        }
        for one in report.numbers
        if one.arm in values
    ]


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
        " later. Burn-in: too early for any interval; its place says what is waited for.",
    ),
    (
        "dagger (†)",
        "Not for looking often: an average or a projection that has no interval of its own. Read it, but do"
        " not stop or go on because of it.",
    ),
    (
        "forecast",
        "How long it may still take if the effect stays as it looks now and units come as fast as now. It"
        " moves from look to look.",
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
        "capped",
        "A unit's value counts as at most the cap, so that a few extreme ones do not hide everybody else's.",
    ),
    (
        "adjusted by the past (CUPED)",
        "What a unit did before it was first served tells part of what it does now, whatever arm it got."
        " Without that part the interval is narrower; the effect means the same.",
    ),
    (
        "secondary metric",
        "Told and never decisive. Of many metrics one always looks good by chance, so their intervals are"
        " wider: all of them hold at once.",
    ),
    (
        "segment",
        "The effect among units with one value of a label. The more values one looks at, the more one finds"
        " by chance: unless effects are shown to differ, the overall effect is the best guess for each.",
    ),
    (
        "holdout",
        "A share of all units that is in no experiment. Everybody else against it tells what all experiments"
        " together have changed.",
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
        " Its ± holds at every look, like the intervals, and it gives no verdict.",
    ),
)
