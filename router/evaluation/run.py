"""From adapter folders to their report cards."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.engine.base import BaseInfo
from router.evaluation import bias, efficiency, generalization, learning_curve, markdown
from router.evaluation.answering import ranked_rows
from router.evaluation.bias import load_cases
from router.evaluation.exam import Exam, Say, Stage, Stages, examined
from router.evaluation.generalization import GENERAL, paragraphs
from router.evaluation.markdown import page
from router.evaluation.metrics import Task
from router.evaluation.plan import Plan
from router.evaluation.report import SAMPLES, Measured, measure, report_card
from router.evaluation.scoring import METRICS, scores
from router.evaluation.subject import Arm, Subject, check_base
from router.training.base import describe_machine
from router.training.data import Row, Splits
from router.training.files import explained, write_file
from router.training.recipe import Recipe, load_recipe

# What a report card is about: adapter, base, data, machine, and scores that cost nothing.


def collect_facts(
    subject: Subject, recipe: Recipe, splits: Splits, task: Task, engine: BaseInfo
) -> dict[str, Any]:
    """The report's head; `engine` is the base as it answered."""
    manifest, test, metric = subject.manifest, recipe.data.test, METRICS[task.metric]
    return {
        "adapter": {
            "name": manifest.name,
            "version": manifest.version,
            "weights_sha256": subject.weights_sha256,
        },
        "base": {"model": subject.base.name, "digest": subject.base.digest},
        "data": {
            "file": test.name,
            "sha256": hashlib.sha256(test.read_bytes()).hexdigest(),
            "rows": len(splits.test),
            "asked": len(task.rows),
            "ranked": len(ranked_rows(task)),
            "labels": len(task.labels),
            "shots": recipe.evaluation.shots,
        },
        "metric": metric.title,
        "scale": metric.digits,
        "reading": metric.reading,
        "references": _references(task),
        "machine": describe_machine(subject.base.device),
        "engine": {"dtype": engine.dtype, "kernels": engine.kernels},
    }


def _references(task: Task) -> dict[str, float]:
    everything = np.arange(len(task.rows))
    answers = METRICS[task.metric].references(task)
    return {name: round(scores(task, given).score.score(everything), 6) for name, given in answers.items()}


# Everything a report card holds beside the scores of the arms.


def measure_sections(exam: Exam, arms: Mapping[Arm, Measured], recipes: Path) -> dict[str, Any]:
    """By key of the report; `recipes` is the folder whose other recipes are the other tasks."""
    subject, recipe, count = exam.subject, exam.plan.recipe, len(exam.task.rows)
    score = arms[Arm.ADAPTER].score.rounded()
    parts: dict[str, Callable[[], Any]] = {
        "efficiency": lambda: _efficiency(exam, arms),
        "splits": lambda: generalization.measure_overfitting(subject, exam.plan.splits, count),
        "generalization": lambda: generalization.measure_generalization(
            subject, recipe, recipes, min(generalization.ROWS, count)
        ),
        "bias": lambda: _bias(exam),
        "data_need": lambda: learning_curve.measure(subject, recipe, score, count),
    }
    sections: dict[str, Any] = {}
    for name, part in parts.items():
        started = time.monotonic()
        sections[name] = part()
        exam.tell(name.replace("_", " "), started)
    sections["regressions"] = generalization.regressions(sections["generalization"])
    return sections


def check_sections(exam: Exam, recipes: Path) -> None:
    """Raises ConfigError now, not after an hour, for a file that a section could not use."""
    learning_curve.load(exam.subject, exam.plan.recipe)
    if (cases := _cases_file(exam)).is_file():
        load_cases(cases)
    for other in recipes.glob("*.toml"):
        load_recipe(other)
    if (general := recipes / GENERAL).is_file():
        paragraphs(general)


def draw_pictures(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """A PNG for each section that has something to show, into `folder`; their names."""
    drawn = {
        "generalization": (markdown.draw_generalization, "sets"),
        "bias": (markdown.draw_bias, "rows"),
        "data_need": (markdown.draw_data_need, "points"),
    }
    made = []
    for name, (draw, needed) in drawn.items():
        if sections[name].get(needed):
            with explained(folder / f"{name}.png"):
                draw(sections[name], folder / f"{name}.png")
            made.append(f"{name}.png")
    return made


def _efficiency(exam: Exam, arms: Mapping[Arm, Measured]) -> dict[str, Any]:
    whole = METRICS[exam.task.metric].whole
    compared = (Arm.SHOTS, Arm.ADAPTER)
    points = {arm: arms[arm].score.value / whole for arm in compared}
    return efficiency.measure({arm: exam.askings[arm] for arm in compared}, exam.speakers, points)


def _bias(exam: Exam) -> dict[str, Any]:
    prompt = exam.subject.rendering.prompt

    def asking(arm: Arm) -> bias.Answers:
        title = f"bias, {arm.value}"
        return lambda texts: [
            answer.text for answer in exam.speakers[arm].answers([prompt(text) for text in texts], title)
        ]

    return bias.measure(_cases_file(exam), asking(Arm.BASE), asking(Arm.ADAPTER))


def _cases_file(exam: Exam) -> Path:
    return exam.plan.recipe_file.parent / "bias" / f"{exam.plan.manifest.name}.toml"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run is asked for: where recipes are, and how many test rows at most."""

    recipes: Path
    rows: int | None


def evaluate_all(plans: Sequence[Plan], limits: Limits, device: str, say: Say) -> list[dict[str, Any]]:
    """Measure every adapter, write its report into its folder at once, return the reports."""
    with Stages(device) as stages:
        return [_evaluate(plan, _stage(stages, plan, plans), limits, say) for plan in plans]


def _stage(stages: Stages, plan: Plan, plans: Sequence[Plan]) -> Stage:
    """The base of a plan, checked for all that need the same one, before hours of work on the first."""
    stage = stages.on(plan.recipe.base.model)
    for other in plans:
        if other.recipe.base.model == plan.recipe.base.model:
            check_base(other.manifest, stage.base)
    return stage


def _evaluate(plan: Plan, stage: Stage, limits: Limits, say: Say) -> dict[str, Any]:
    with examined(plan, stage, limits.rows, say) as exam:
        check_sections(exam, limits.recipes)
        arms = _arms(exam)
        sections = measure_sections(exam, arms, limits.recipes)
        facts = collect_facts(exam.subject, plan.recipe, plan.splits, exam.task, stage.answering.info)
        facts["command"] = _command(plan.folder, limits.rows)
    sections["pictures"] = draw_pictures(sections, plan.folder)
    report = report_card(facts, arms, sections, _samples(exam.task.rows, arms))
    report_json = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_file(plan.folder / "report.json", report_json.encode())
    write_file(plan.folder / "REPORT.md", page(report).encode())
    return report


def _arms(exam: Exam) -> dict[Arm, Measured]:
    arms: dict[Arm, Measured] = {}
    ranked, metric = ranked_rows(exam.task), METRICS[exam.task.metric]
    for arm, asking in exam.askings.items():
        started = time.monotonic()
        arms[arm] = measure(exam.subject, exam.speakers[arm], asking, exam.task, ranked)
        score = f"{arms[arm].score.value:.{metric.digits}f}"
        exam.tell(f"{arm.value.replace('_', ' ')}: {metric.title} {score}", started)
    return arms


def _command(folder: Path, rows: int | None) -> str:
    named = folder.name if folder.parent.name == "adapters" else f"{folder.parent.name}/{folder.name}"
    return f"lora-router adapters evaluate {named}" + (f" --rows {rows}" if rows else "")


def _samples(rows: Sequence[Row], arms: Mapping[Arm, Measured]) -> list[dict[str, str]]:
    return [
        {
            "prompt": row.prompt,
            "gold": row.response,
            "base": arms[Arm.BASE].answers[place],
            "base_with_examples": arms[Arm.SHOTS].answers[place],
            "adapter": arms[Arm.ADAPTER].answers[place],
        }
        for place, row in enumerate(rows[:SAMPLES])
    ]
