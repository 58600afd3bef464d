"""From an adapter folder to its report card."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.evaluation import bias, data_need, efficiency, generalization, overfitting
from router.evaluation.answering import Answering
from router.evaluation.arms import Arm, Asking, ask, worked_examples
from router.evaluation.facts import collect_facts
from router.evaluation.markdown import page
from router.evaluation.measure import Measured, measure
from router.evaluation.metrics import Task
from router.evaluation.plan import Plan
from router.evaluation.ranking import ranked_rows
from router.evaluation.report import SAMPLES, report_card
from router.evaluation.scoring import METRICS
from router.evaluation.speaker import Speaker
from router.evaluation.stage import Stage, Stages
from router.evaluation.subject import Subject, check_base, load_subject
from router.training.data import Row
from router.training.files import write_file
from router.types import SamplingParams

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run is asked for: where recipes are, and how many test rows at most."""

    recipes: Path
    rows: int | None


@dataclass(frozen=True, slots=True)
class Exam:
    """An adapter before its questions."""

    plan: Plan
    subject: Subject
    task: Task
    askings: Mapping[Arm, Asking]
    speakers: Mapping[Arm, Speaker]
    say: Say

    def tell(self, what: str, started: float) -> None:
        """One line about a part that is done."""
        self.say(f"{self.plan.manifest.name}: {what} ({time.monotonic() - started:.0f} s)")


def evaluate_all(plans: Sequence[Plan], limits: Limits, device: str, say: Say) -> list[dict[str, Any]]:
    """Measure every adapter, write report.json and REPORT.md into its folder, return the reports."""
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
    with _exam(plan, stage, limits, say) as exam:
        arms = _arms(exam)
        sections = _sections(exam, arms, limits)
        facts = collect_facts(exam.subject, plan.recipe, plan.splits, exam.task, stage.answering.info)
        facts["command"] = _command(plan.folder, limits.rows)
        report = report_card(facts, arms, sections, _samples(exam.task.rows, arms))
    report_json = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_file(plan.folder / "report.json", report_json.encode())
    write_file(plan.folder / "REPORT.md", page(report).encode())
    return report


@contextmanager
def _exam(plan: Plan, stage: Stage, limits: Limits, say: Say) -> Iterator[Exam]:
    """The adapter on the plain base and in the engine; both without it again at the end."""
    subject = load_subject(plan.folder, plan.manifest, stage.base)
    try:
        digest = stage.answering.load(plan.folder)
        yield _questions(plan, subject, stage.answering, digest, limits, say)
        stage.answering.unload(digest)
    finally:
        subject.close()


def _questions(
    plan: Plan, subject: Subject, answering: Answering, digest: str, limits: Limits, say: Say
) -> Exam:
    judging, generation = plan.recipe.evaluation, plan.recipe.generation
    asked = draw(plan.splits.test, limits.rows)
    task = Task(judging.metric, asked, _labels(plan), generation.max_tokens, judging.parts)
    shots = worked_examples(plan.splits.train, judging.shots)
    base = Speaker(answering, SamplingParams(max_tokens=generation.max_tokens, stop=generation.stop))
    speakers = {arm: replace(base, adapter=digest if arm is Arm.ADAPTER else None) for arm in Arm}
    askings = {arm: ask(arm, asked, subject.rendering, shots) for arm in Arm}
    return Exam(plan, subject, task, askings, speakers, say)


def _labels(plan: Plan) -> list[str]:
    """All answers of the training rows, commonest first, where answers come out of a list."""
    if not plan.recipe.label_task:
        return []
    return [label for label, _ in Counter(row.response for row in plan.splits.train).most_common()]


def draw(rows: Sequence[Row], count: int | None) -> list[Row]:
    """All rows, or `count` of them drawn by a fixed seed."""
    if count is None or count >= len(rows):
        return list(rows)
    return random.Random(0).sample(list(rows), count)


def _arms(exam: Exam) -> dict[Arm, Measured]:
    arms: dict[Arm, Measured] = {}
    ranked = ranked_rows(exam.task)
    metric = METRICS[exam.task.metric]
    for arm, asking in exam.askings.items():
        started = time.monotonic()
        arms[arm] = measure(exam.subject, exam.speakers[arm], asking, exam.task, ranked)
        score = f"{arms[arm].score.value:.{metric.digits}f}"
        exam.tell(f"{arm.value.replace('_', ' ')}: {metric.title} {score}", started)
    return arms


def _sections(exam: Exam, arms: Mapping[Arm, Measured], limits: Limits) -> dict[str, Any]:
    """Everything beside the scores of the arms, by its key in the report."""
    subject, recipe, count = exam.subject, exam.plan.recipe, len(exam.task.rows)
    parts: dict[str, Callable[[], Any]] = {
        "efficiency": lambda: _efficiency(exam, arms),
        "splits": lambda: overfitting.measure(subject, exam.plan.splits, count),
        "generalization": lambda: generalization.measure(
            subject, recipe, limits.recipes, min(generalization.ROWS, count)
        ),
        "bias": lambda: _bias(exam),
        "data_need": lambda: data_need.measure(subject, recipe, arms[Arm.ADAPTER].score.rounded(), count),
    }
    sections: dict[str, Any] = {}
    for name, part in parts.items():
        started = time.monotonic()
        sections[name] = part()
        exam.tell(name.replace("_", " "), started)
    sections["regressions"] = generalization.regressions(sections["generalization"])
    return sections


def _efficiency(exam: Exam, arms: Mapping[Arm, Measured]) -> dict[str, Any]:
    whole = METRICS[exam.task.metric].whole
    compared = (Arm.SHOTS, Arm.ADAPTER)
    points = {arm: arms[arm].score.value / whole for arm in compared}
    return efficiency.measure({arm: exam.askings[arm] for arm in compared}, exam.speakers, points)


def _bias(exam: Exam) -> dict[str, Any]:
    def asking(arm: Arm) -> bias.Answers:
        title = f"bias, {arm.value}"
        prompt = exam.subject.rendering.prompt
        return lambda texts: [
            answer.text for answer in exam.speakers[arm].answers([prompt(text) for text in texts], title)
        ]

    file = exam.plan.recipe_file.parent / "bias" / f"{exam.plan.manifest.name}.toml"
    return bias.measure(file, asking(Arm.BASE), asking(Arm.ADAPTER))


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
