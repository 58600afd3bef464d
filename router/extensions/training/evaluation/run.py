"""From adapter folders to their report cards.

Each arm is measured, then the sections: efficiency, overfitting, generalization and bias.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from router.extensions.training.evaluation.bias import AskTexts, load_cases, measure_bias
from router.extensions.training.evaluation.exam import (
    EvaluationPlan,
    Exam,
    MeasuredArm,
    ReadyBase,
    Say,
    examined,
    measure_arm,
    measure_efficiency,
    ready_base,
)
from router.extensions.training.evaluation.generalization import (
    GENERAL,
    ROWS,
    measure_generalization,
    measure_overfitting,
    paragraphs,
    regressions,
)
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.report import report_card, write_report
from router.extensions.training.evaluation.subject import ComparedArm
from router.extensions.training.labels import measure_calibration, places_of, scores_of
from router.extensions.training.recipe import load_recipe
from router.types import Constraint


def evaluate_all(
    plans: Sequence[EvaluationPlan],
    recipes: Path,
    rows: int | None,
    device: str,
    say: Say,
) -> list[dict[str, Any]]:
    """Measure every adapter, write its report into its folder at once, return the reports.

    `recipes` is the folder whose other recipes are the other tasks; `rows` limits the test rows.
    """
    reports = []
    for model, of_base in groupby(plans, key=lambda plan: plan.recipe.base.model):
        with ready_base(model, device) as ready:
            reports += [_evaluate(plan, ready, recipes, rows, say) for plan in of_base]
    return reports


def _evaluate(
    plan: EvaluationPlan, ready: ReadyBase, recipes: Path, rows: int | None, say: Say
) -> dict[str, Any]:
    with examined(plan, ready, rows, say) as exam:
        _check_sections(exam, recipes)
        arms = _measure_arms(exam)
        report = report_card(exam, ready.engine.info, arms, _measure_sections(exam, arms, recipes))
    write_report(plan.folder, report)
    return report


def _check_sections(exam: Exam, recipes: Path) -> None:
    """Raises ConfigError now, not after an hour, for a file that a section could not use."""
    if (cases := _cases_file(exam)).is_file():
        load_cases(cases)
    for other in recipes.glob("*.toml"):
        load_recipe(other)
    if (general := recipes / GENERAL).is_file():
        paragraphs(general)


def _measure_arms(exam: Exam) -> dict[ComparedArm, MeasuredArm]:
    arms: dict[ComparedArm, MeasuredArm] = {}
    metric = METRICS[exam.task.metric]
    for arm in exam.questions:
        started = time.monotonic()
        arms[arm] = measure_arm(exam, arm)
        score = f"{arms[arm].score.value:.{metric.digits}f}"
        exam.report(f"{arm.value.replace('_', ' ')}: {metric.title} {score}", started)
    return arms


def _measure_sections(exam: Exam, arms: Mapping[ComparedArm, MeasuredArm], recipes: Path) -> dict[str, Any]:
    """What the card holds beside the scores of the arms, by key of the report."""
    subject, recipe, count = exam.subject, exam.plan.recipe, len(exam.task.rows)
    parts: dict[str, Callable[[], Any]] = {
        "efficiency": lambda: _efficiency(exam, arms),
        "splits": lambda: measure_overfitting(subject, exam.plan.splits, count),
        "calibration": lambda: _calibration(exam, arms),
        "generalization": lambda: measure_generalization(subject, recipe, recipes, min(ROWS, count)),
    }
    if not arms[ComparedArm.ADAPTER].labels:
        del parts["calibration"]
    if _cases_file(exam).is_file():
        parts["bias"] = lambda: _bias(exam)
    sections: dict[str, Any] = {}
    for name, part in parts.items():
        started = time.monotonic()
        sections[name] = part()
        exam.report(name.replace("_", " "), started)
    sections["regressions"] = regressions(sections["generalization"])
    return sections


def _efficiency(exam: Exam, arms: Mapping[ComparedArm, MeasuredArm]) -> dict[str, Any]:
    whole = METRICS[exam.task.metric].whole
    compared = (ComparedArm.SHOTS, ComparedArm.ADAPTER)
    points = {arm: arms[arm].score.value / whole for arm in compared}
    return measure_efficiency({arm: exam.questions[arm] for arm in compared}, exam.answerers, points)


def _calibration(exam: Exam, arms: Mapping[ComparedArm, MeasuredArm]) -> dict[str, Any]:
    manifest = exam.plan.manifest
    constraint = manifest.generation.constraint or Constraint("choices")
    scores = scores_of(arms[ComparedArm.ADAPTER].labels, constraint.choices)
    gold = places_of([row.response for row in exam.task.rows], constraint.choices)
    return measure_calibration(scores, gold, manifest.labels.temperature)


def _bias(exam: Exam) -> dict[str, Any]:
    prompt = exam.subject.rendering.prompt

    def ask_arm(arm: ComparedArm) -> AskTexts:
        return lambda texts: [
            answer.text for answer in exam.answerers[arm].answers([prompt(text) for text in texts], texts)
        ]

    return measure_bias(_cases_file(exam), ask_arm(ComparedArm.BASE), ask_arm(ComparedArm.ADAPTER))


def _cases_file(exam: Exam) -> Path:
    return exam.plan.recipe_file.parent / "bias" / f"{exam.plan.manifest.name}.toml"
