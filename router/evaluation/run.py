"""From adapter folders to their report cards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.evaluation.arms import Arm
from router.evaluation.exam import Exam, Say, examined
from router.evaluation.facts import collect_facts
from router.evaluation.markdown import page
from router.evaluation.measure import Measured, measure
from router.evaluation.plan import Plan
from router.evaluation.ranking import ranked_rows
from router.evaluation.report import SAMPLES, report_card
from router.evaluation.scoring import METRICS
from router.evaluation.sections import check_sections, draw_pictures, measure_sections
from router.evaluation.stage import Stage, Stages
from router.evaluation.subject import check_base
from router.training.data import Row
from router.training.files import write_file


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
