"""A report as one HTML page that needs nothing else: no other file, no network, no script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from router.cli import experiment_numbers as numbers
from router.cli.experiment_charts import color, effect_chart, guardrail_bar, share_chart
from router.cli.experiment_pairs import at, metric_line, pairs_of
from router.cli.experiment_table import beside, following, heading, since
from router.cli.experiment_words import WORDS

if TYPE_CHECKING:
    from router.experiments.report.model import ArmReport, Report

TONES = {"promote": "promote", "stop for harm": "harm", "undecided": "undecided", "invalid": "invalid"}


def page(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("router.cli"),
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
        "level": numbers.level(spec.alpha).lower(),
        "effect_chart": Markup(effect_chart(report)),  # noqa: S704 -- texts in it are escaped where it is drawn
        "share_chart": Markup(share_chart(report)),  # noqa: S704
        "effects": _effects(report),
        "beside": [f"{arm.arm}: {line}" for arm in report.arms for line in beside(arm)],
        "meters": _meters(report),
        "pairs": [_pairs(arm) for arm in report.arms if arm.pairs],
        "rails": _rails(report),
        "columns": [t.lower() for t in (*numbers.COUNTS, *(title for title, _, _ in numbers.BUILT_IN))],
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
            "value": numbers.plain(found.values[0]),
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
        "value": numbers.plain(found.values[1]),
        "difference": numbers.signed(found.effect),
        "interval": numbers.interval(found.low, found.high),
        "relative": numbers.relative(found),
        "p": numbers.chance(arm.adjusted_p),
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
            "value": numbers.plain(values[one.arm]),
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
        "p": numbers.chance(pairs.p),
    }


def _rails(report: Report) -> list[dict[str, str]]:
    from markupsafe import Markup

    return [
        {
            "metric": rail.metric,
            "arm": arm.arm,
            "control": numbers.plain(rail.values[0]),
            "value": numbers.plain(rail.values[1]),
            "difference": numbers.signed(rail.effect),
            "interval": numbers.interval(rail.low, rail.high),
            "bar": Markup(guardrail_bar(rail)),  # noqa: S704 -- numbers only
            "margin": numbers.margin(rail),
            "state": rail.state,
        }
        for arm in report.arms
        for rail in arm.guardrails
    ]


def _arms(report: Report) -> list[dict[str, Any]]:
    return [{"color": color(report, arm.arm), "cells": numbers.cells(report, arm)} for arm in report.numbers]


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
