"""Calibration of the probabilities of an adapter's choices: measured on test rows for the report card, and
fitted on validation rows for an adapter that was trained before training did so.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router.errors import ConfigError
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.exam import EvaluationPlan, ReadyBase, Say, draw_rows
from router.extensions.training.evaluation.report import draw_pictures, report_page, write_report
from router.extensions.training.evaluation.subject import Answerer, check_base
from router.extensions.training.files import has_pictures, write_file
from router.extensions.training.labels import (
    LEAST_ROWS,
    Floats,
    calibration_of,
    fit_temperature,
    places_of,
    scaled,
)
from router.types import LabelProbabilities, LabelSettings, SamplingParams

TABLE = re.compile(r"^\[labels\][^\n]*\n", re.M)
KEY = re.compile(r"^temperature\s*=[^\n]*\n", re.M)
NEXT = re.compile(r"^\[routing\]", re.M)


def scores_of(found: Sequence[LabelProbabilities], choices: Sequence[str]) -> Floats:
    """Log-probabilities [rows, choices], in the order of the choices."""
    with np.errstate(divide="ignore"):
        return np.log([[dict(one.values)[choice] for choice in choices] for one in found])


def measure_calibration(
    scores: Floats, rows: Sequence[TrainingRow], choices: Sequence[str], temperature: float | None
) -> dict[str, Any]:
    """How far probabilities are from how often they are right: `calibration_of` under the temperature, with
    how often the likeliest choice is right, and the error without the temperature.

    `scores` are log-probabilities [rows, choices] that are not calibrated.
    """
    gold = places_of([row.response for row in rows], choices)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": len(rows),
        "temperature": temperature,
        "likeliest": round(float((scores.argmax(1) == gold).mean()), 4),
        **calibration_of(scaled(scores, temperature or 1.0), gold),
        "error_before": calibration_of(scaled(scores, 1.0), gold)["error"],
    }


def renew_calibration(plan: EvaluationPlan, ready: ReadyBase, rows: int | None, say: Say) -> dict[str, Any]:
    """Fit the temperature on the validation rows and write it into adapter.toml; measure it on test rows, at
    most `rows`, and renew that section of the report, where there is one. Returns the section.

    Raises ConfigError for an adapter without choices, or with few validation rows, and AdapterRejected.
    """
    name, constraint = plan.manifest.name, plan.manifest.generation.constraint
    if constraint is None or constraint.kind != "choices":
        raise ConfigError(
            f"{name} has no choices in [generation] of adapter.toml whose probabilities are given"
        )
    check_base(plan.manifest, ready.plain)
    choices, asked = constraint.choices, draw_rows(plan.splits.test, rows)
    rendering = Rendering.of(ready.plain.tokenizer, plan.manifest.prompt)
    digest = ready.engine.load(plan.folder)
    params = SamplingParams(plan.recipe.generation.max_tokens, constraint=constraint)
    answerer = Answerer(ready.engine, params, digest, LabelSettings())

    def scores(of: Sequence[TrainingRow], title: str) -> Floats:
        answers = answerer.answers([rendering.prompt(row.prompt) for row in of], title)
        return scores_of([answer.labels for answer in answers if answer.labels is not None], choices)

    fitted = scores(plan.splits.valid, "validation rows")
    judged = scores(asked, "test rows")
    ready.engine.unload(digest)
    gold = places_of([row.response for row in plan.splits.valid], choices)
    temperature = fit_temperature(fitted, gold)
    if temperature is None:
        raise ConfigError(f"{name} has fewer than {LEAST_ROWS} validation rows: too few to calibrate it")
    file = plan.folder / "adapter.toml"
    write_file(file, with_temperature(file.read_text(encoding="utf-8"), temperature).encode())
    section = measure_calibration(judged, asked, choices, temperature)
    _renew_report(plan.folder, section)
    say(
        f"{name}: temperature {temperature:g}, fitted on {len(gold)} validation rows; calibration error on "
        f"{len(asked)} test rows {section['error']:.3f}, before {section['error_before']:.3f}, by chance "
        f"{section['by_chance']:.3f}"
    )
    return section


def with_temperature(text: str, temperature: float) -> str:
    """The manifest with that `[labels] temperature`. Raises ConfigError where its form is unusual."""
    line = f"temperature = {temperature!r}\n"
    text += "" if text.endswith("\n") else "\n"
    if (table := TABLE.search(text)) is not None:
        after = text[table.end() :]
        end = after.find("\n[") + 1 or len(after)
        body = KEY.sub("", after[:end])
        made = text[: table.end()] + line + body + after[end:]
    else:
        routing = NEXT.search(text)
        place = routing.start() if routing else len(text)
        gap = "" if place == 0 or text[:place].endswith("\n\n") else "\n"
        made = f"{text[:place]}{gap}[labels]\n{line}" + ("\n" if routing else "") + text[place:]
    before = tomllib.loads(text)
    wanted = before | {"labels": before.get("labels", {}) | {"temperature": temperature}}
    try:
        same = tomllib.loads(made) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise ConfigError(f"adapter.toml has an unusual form: write into its table [labels]: {line.strip()}")
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
