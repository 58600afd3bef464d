"""Everything a report card holds beside the scores of the arms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from router.evaluation import bias, data_need, efficiency, generalization, overfitting, plots
from router.evaluation.arms import Arm
from router.evaluation.counterfactuals import load_cases
from router.evaluation.exam import Exam
from router.evaluation.general_text import GENERAL, paragraphs
from router.evaluation.measure import Measured
from router.evaluation.scoring import METRICS
from router.training.files import explained
from router.training.recipe import load_recipe


def measure_sections(exam: Exam, arms: Mapping[Arm, Measured], recipes: Path) -> dict[str, Any]:
    """By key of the report; `recipes` is the folder whose other recipes are the other tasks."""
    subject, recipe, count = exam.subject, exam.plan.recipe, len(exam.task.rows)
    score = arms[Arm.ADAPTER].score.rounded()
    parts: dict[str, Callable[[], Any]] = {
        "efficiency": lambda: _efficiency(exam, arms),
        "splits": lambda: overfitting.measure(subject, exam.plan.splits, count),
        "generalization": lambda: generalization.measure(
            subject, recipe, recipes, min(generalization.ROWS, count)
        ),
        "bias": lambda: _bias(exam),
        "data_need": lambda: data_need.measure(subject, recipe, score, count),
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
    data_need.load(exam.subject, exam.plan.recipe)
    if (cases := _cases_file(exam)).is_file():
        load_cases(cases)
    for other in recipes.glob("*.toml"):
        load_recipe(other)
    if (general := recipes / GENERAL).is_file():
        paragraphs(general)


def draw_pictures(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """A PNG for each section that has something to show, into `folder`; their names."""
    drawn = {
        "generalization": (plots.draw_generalization, "sets"),
        "bias": (plots.draw_bias, "rows"),
        "data_need": (plots.draw_data_need, "points"),
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
