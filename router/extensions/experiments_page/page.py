"""A report as one HTML page that needs nothing else: no other file, no network, no script.

Its charts show the effect over time, and how a guardrail lies to its margin; its words are explained for
readers who are no statisticians.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from router.experiments import check_words, report_tables, words
from router.experiments.charts import color, effect_chart
from router.experiments.forest import forest_of
from router.experiments.next_step import following
from router.experiments.plan_lines import pairs_of
from router.experiments.report_tables import ReportTable
from router.experiments.words import MARK, at

if TYPE_CHECKING:
    from markupsafe import Markup

    from router.experiments.report.model import Report

TONES = {"promote": "promote", "stop for harm": "harm", "undecided": "undecided", "invalid": "invalid"}
MARKS = {"✓": "ok", "✗": "failed", "?": "open"}
MARK_TITLE = "not for looking often: it has no range that holds at every look"


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
    found.filters["tone"] = lambda text: MARKS.get(text[:1], "open")
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
    experiment, spec = report.experiment, report.judged.spec
    form = words.quantity(spec.primary)
    return {
        "name": experiment.name,
        "hypothesis": spec.hypothesis,
        "holdout": words.HOLDOUT if spec.mode == "holdout" else "",
        "state": words.since(report),
        "head": words.heading(report),
        "tone": TONES.get(report.verdict.decision, "undecided"),
        "lines": words.effect_lines(report),
        "failed": check_words.failed_checks(report),
        "rulings": [(arm.arm, words.sentence(report, arm.verdict, arm.arm)) for arm in report.arms],
        "outlook": words.outlook(report),
        "next": following(report),
        "sound": check_words.checks_line(report),
        "legend": words.legend(report) if report.arms else [],
        "primary": spec.primary.name,
        "control": spec.control,
        "axis": f", in {form.axis_unit}" if form.axis_unit else "",
        "colors": {arm.name: color(report, arm.name) for arm in spec.arms},
        "forest": forest_of(report),
        "effect_chart": drawn(effect_chart(report)),
        "anytime": all(arm.primary.anytime for arm in report.arms if arm.primary),
        **_tables(report),
        "meters": _meters(report),
        "notes": report.notes,
        "plan": pairs_of(experiment),
        "audit": _audit(report),
        "words": WORDS,
    }


def _tables(report: Report) -> dict[str, Any]:
    """The page's tables by name."""
    shadow = report.judged.spec.mode == "shadow"
    return {
        "effects": ReportTable("", (), ()) if shadow else report_tables.effects(report),
        "missing": report_tables.missing(report),
        "pairs": report_tables.pairs(report),
        "rails": report_tables.guardrails(report),
        "secondary": report_tables.secondary(report),
        "segments": [*report_tables.segments(report), *report_tables.days(report)],
        "details": list(report_tables.details(report)) if report.arms else [],
    }


def _meters(report: Report) -> list[dict[str, str]]:
    """The primary metric of each arm as a bar, the largest one whole."""
    spec, form = report.judged.spec, words.quantity(report.judged.spec.primary)
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
            "value": form.value(values[one.arm]),
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
        "arm, control",
        "One of the things that are compared; control is the one that the others are compared with.",
    ),
    (
        "unit",
        "Who has the same arm throughout, such as a user. Everything is counted by unit, never by request.",
    ),
    (
        "points",
        "Of 100: if 52 of 100 users like one arm and 57 of 100 the other, the difference is 5 points.",
    ),
    (
        "better, worse, not clear yet",
        "Better and worse are shown: chance alone does not explain them. Not clear yet means that the range"
        " contains zero; it does not mean that there is no difference.",
    ),
    ("promote", "The arm is better, it makes nothing worse that must not get worse, and the data are fine."),
    ("stop", "The arm is worse, or it makes something worse than the plan allows."),
    ("wait", "Nothing is shown yet, in either direction."),
    ("give up", "All planned units took part, and no gain is in sight."),
    ("invalid", "A check of the data failed: the numbers say nothing about the arms."),
    (
        "window",
        "Outcomes count for this long after a unit was first served. Only units that had their whole window"
        " are compared.",
    ),
    (
        "chance of success",
        "With the difference that the planned number of units finds four times in five, and if it goes on as"
        " now: how likely it is that the arm is shown to be better by then. Below 10 % for both it is"
        " reasonable to give up.",
    ),
    (
        "until about",
        "A forecast: it holds if the difference stays as it is now and units come as fast as now. It moves"
        " from look to look.",
    ),
    (
        "capped",
        "A unit's value counts as at most the cap, so that a few extreme ones do not hide everybody else's.",
    ),
    (
        "interval, p",
        "Behind the fold: an interval is the range in brackets; p is how surprising the data would be without"
        " a difference, adjusted for the number of arms (Holm). Both hold at every look.",
    ),
    (
        "exact, asymptotic, burn-in",
        "Where an interval comes from: exact for shares at any number of units, used early; close to it"
        " later. Burn-in: too early for any interval.",
    ),
    (
        "degraded",
        "The arm could not answer and something else did. The unit stays in its arm, or a broken arm would"
        " look good.",
    ),
)
