"""Probabilities of an adapter's choices: measured on test rows for the report card, and prior and temperature
fitted on validation rows for an adapter that was trained before training did so.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from router.engine.labels import LabelTree
from router.errors import ConfigError
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.exam import EvaluationPlan, ReadyBase, Say, draw_rows
from router.extensions.training.evaluation.report import draw_pictures, report_page, write_report
from router.extensions.training.evaluation.subject import Answerer, check_base
from router.extensions.training.export import label_tables, toml_text
from router.extensions.training.files import has_pictures, write_file
from router.extensions.training.labels import (
    LEAST_ROWS,
    FittedLabels,
    Floats,
    Places,
    calibration_of,
    fit_labels,
    label_tree,
    places_of,
    scaled,
)
from router.types import Constraint, LabelProbabilities, LabelSettings, SamplingParams

TABLES = re.compile(r"^\[labels(?:\.prior)?\][^\n]*\n(?:(?!\[)[^\n]*\n)*", re.M)
NEXT = re.compile(r"^\[routing\]", re.M)


def scores_of(found: Sequence[LabelProbabilities], choices: Sequence[str]) -> Floats:
    """Log-probabilities [rows, choices], in the order of the choices."""
    with np.errstate(divide="ignore"):
        return np.log([[dict(one.values)[choice] for choice in choices] for one in found])


@dataclass(frozen=True, slots=True)
class LabelRows:
    """Log-probabilities [rows, choices], under no temperature and no prior, and the right choice of each."""

    scores: Floats
    gold: Places


def ask_labels(
    answerer: Answerer, rendering: Rendering, rows: Sequence[TrainingRow], constraint: Constraint, title: str
) -> LabelRows:
    """Of rows, by the engine that serves."""
    params = replace(answerer.params, constraint=constraint.without_prior())
    asked = replace(answerer, params=params, labels=LabelSettings())
    answers = asked.answers([rendering.prompt(row.prompt) for row in rows], title)
    found = [answer.labels for answer in answers if answer.labels is not None]
    return LabelRows(scores_of(found, constraint.choices), gold_of(rows, constraint))


def gold_of(rows: Sequence[TrainingRow], constraint: Constraint) -> Places:
    """The place of the right answer of each row among the choices, -1 where it is none."""
    return places_of([row.response for row in rows], constraint.choices)


def measure_calibration(
    judged: LabelRows,
    temperature: float | None,
    prior: Sequence[float],
    tree: LabelTree,
    fitted: FittedLabels | None,
) -> dict[str, Any]:
    """How far the probabilities of test rows are from how often they are right: `calibration_of` under prior
    and temperature, with how often the likeliest choice is right, and the error without the temperature.

    `prior` has how often answers are right without and with a prior: on validation rows, with priors fitted
    on others of them (`fitted`), and on the test rows, with that of the adapter, if it has one.
    """
    gold, scores = judged.gold, judged.scores + (prior or 0.0)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": len(gold),
        "temperature": temperature,
        "likeliest": round(float((scores.argmax(1) == gold).mean()), 4),
        **calibration_of(scaled(scores, temperature or 1.0), gold),
        "error_before": calibration_of(scaled(scores, 1.0), gold)["error"],
        "prior": _prior_section(judged, prior, tree, fitted),
    }


def _prior_section(
    judged: LabelRows, prior: Sequence[float], tree: LabelTree, fitted: FittedLabels | None
) -> dict[str, Any] | None:
    """None where nothing was fitted."""
    if fitted is None:
        return None
    found: dict[str, Any] = {
        "used": bool(prior),
        "rows": fitted.rows,
        "without": round(fitted.without, 4),
        "with": round(fitted.corrected, 4),
        "error": round(fitted.error, 4),
    }
    if prior:
        for key, one in (("test_without", np.zeros(len(prior))), ("test_with", np.array(prior))):
            found[key] = round(float((tree.answers(judged.scores, one) == judged.gold).mean()), 4)
    return found


def renew_calibration(plan: EvaluationPlan, ready: ReadyBase, rows: int | None, say: Say) -> dict[str, Any]:
    """Fit prior and temperature on the validation rows and write them into adapter.toml; measure them on test
    rows, at most `rows`, and renew that section of the report, where there is one. Returns the section.

    Raises ConfigError for an adapter without choices, or with few validation rows, and AdapterRejected.
    """
    name, constraint = plan.manifest.name, plan.manifest.generation.constraint
    if constraint is None or constraint.kind != "choices":
        raise ConfigError(
            f"{name} has no choices in [generation] of adapter.toml whose probabilities are given"
        )
    check_base(plan.manifest, ready.plain)
    rendering = Rendering.of(ready.plain.tokenizer, plan.manifest.prompt)
    digest = ready.engine.load(plan.folder)
    params = SamplingParams(plan.recipe.generation.max_tokens, constraint=constraint)
    answerer = Answerer(ready.engine, params, digest)
    valid = ask_labels(answerer, rendering, plan.splits.valid, constraint, "validation rows")
    judged = ask_labels(answerer, rendering, draw_rows(plan.splits.test, rows), constraint, "test rows")
    ready.engine.unload(digest)
    tree = label_tree(rendering, constraint.choices)
    fitted = fit_labels(valid.scores, valid.gold, tree)
    if fitted is None:
        raise ConfigError(f"{name} has fewer than {LEAST_ROWS} validation rows: too few to calibrate it")
    file = plan.folder / "adapter.toml"
    text = with_labels(file.read_text(encoding="utf-8"), fitted, constraint.choices)
    write_file(file, text.encode())
    section = measure_calibration(judged, fitted.temperature, fitted.prior, tree, fitted)
    _renew_report(plan.folder, section)
    say(
        f"{name}: temperature {fitted.temperature:g}, fitted on {fitted.rows} validation rows; calibration "
        f"error on {section['rows']} test rows {section['error']:.3f}, before "
        f"{section['error_before']:.3f}, by chance {section['by_chance']:.3f}"
    )
    say(
        f"{name}: a prior of each choice is {'' if fitted.prior else 'not '}used: right on validation rows "
        f"are {fitted.corrected:.1%}, with priors fitted on others of them, and {fitted.without:.1%} without"
    )
    return section


def with_labels(text: str, fitted: FittedLabels, choices: Sequence[str]) -> str:
    """The manifest with that temperature and prior in `[labels]`, and nothing else changed.

    Raises ConfigError where its form is unusual.
    """
    before = tomllib.loads(text)
    tables = label_tables(fitted, choices)
    others = {key: value for key, value in before.get("labels", {}).items() if key != "prior"}
    tables["labels"] = others | tables["labels"]
    rest = TABLES.sub("", text if text.endswith("\n") else f"{text}\n")
    routing = NEXT.search(rest)
    place = routing.start() if routing else len(rest)
    gap = "" if place == 0 or rest[:place].endswith("\n\n") else "\n"
    made = rest[:place] + gap + toml_text(tables) + ("\n" if routing else "") + rest[place:]
    wanted = before | {
        "labels": tables["labels"] | ({"prior": tables["labels.prior"]} if fitted.prior else {})
    }
    try:
        same = tomllib.loads(made) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise ConfigError(f"adapter.toml has an unusual form: write into it:\n{toml_text(tables)}")
    return made


def _renew_report(folder: Path, section: dict[str, Any]) -> None:
    """The section in report.json, REPORT.md and calibration.png, where there is a whole report."""
    file = folder / "report.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "splits" not in report:
        return
    report["calibration"] = section
    if has_pictures():
        drawn = draw_pictures({"calibration": section}, folder)
        report["pictures"] = list(dict.fromkeys([*report.get("pictures", []), *drawn]))
    write_report(folder, report, report_page(report))
