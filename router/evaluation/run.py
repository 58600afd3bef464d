"""From an adapter folder to its report card."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from router.evaluation.arms import Arm, ask, worked_examples
from router.evaluation.facts import collect_facts
from router.evaluation.forced import Forced, forced
from router.evaluation.markdown import page
from router.evaluation.measure import Measured, measure
from router.evaluation.metrics import Task
from router.evaluation.report import SAMPLES, report_card
from router.evaluation.subject import Subject, load_subject, read_manifest
from router.training.answers import AnswerModel
from router.training.base import load_base
from router.training.data import Row, Splits, load_splits
from router.training.files import write_file
from router.training.recipe import Recipe, load_recipe

Say = Callable[[str], None]


def evaluate_folder(
    folder: Path, recipe_file: Path, rows: int | None, device: str, say: Say
) -> dict[str, Any]:
    """Measure all arms, write report.json and REPORT.md into `folder`, return the report."""
    manifest, recipe = read_manifest(folder), load_recipe(recipe_file)
    splits = load_splits(recipe.data)
    subject = load_subject(folder, manifest, load_base(recipe.base.model, device))
    asked = draw(splits.test, rows)
    judging = recipe.evaluation
    task = Task(judging.metric, asked, _labels(recipe, splits), recipe.generation.max_tokens, judging.parts)
    shots = worked_examples(splits.train, recipe.evaluation.shots)
    arms: dict[Arm, Measured] = {}
    for arm in Arm:
        arms[arm] = measure(subject, ask(arm, asked, subject.rendering, shots), task)
        say(f"{manifest.name}: {arm.value.replace('_', ' ')}: {task.metric} {arms[arm].score.value:.3f}")
    facts = collect_facts(subject, recipe, splits, task)
    facts["command"] = _command(folder, rows)
    report = report_card(facts, arms, _gap(subject, splits, len(asked)), _samples(asked, arms))
    write_file(folder / "report.json", (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode())
    write_file(folder / "REPORT.md", page(report).encode())
    return report


def _command(folder: Path, rows: int | None) -> str:
    named = Path(folder.parent.name) / folder.name  # nothing of this machine's own paths
    return f"lora-router adapters evaluate {named}" + (f" --rows {rows}" if rows else "")


def draw(rows: Sequence[Row], count: int | None) -> list[Row]:
    """All rows, or `count` of them drawn by a fixed seed."""
    if count is None or count >= len(rows):
        return list(rows)
    return random.Random(0).sample(list(rows), count)


def _labels(recipe: Recipe, splits: Splits) -> list[str]:
    counts = Counter(row.response for row in splits.train) if recipe.label_task else Counter[str]()
    return [label for label, _ in counts.most_common()]


def _gap(subject: Subject, splits: Splits, count: int) -> dict[str, Forced]:
    model = AnswerModel(subject.model)
    gap = {
        name: forced(model, subject.rendering.examples(draw(getattr(splits, name), count)))
        for name in ("train", "valid", "test")
    }
    model.close()
    return gap


def _samples(rows: Sequence[Row], arms: Mapping[Arm, Measured]) -> list[dict[str, str]]:
    return [
        {
            "prompt": row.prompt,
            "gold": row.response,
            "base": arms[Arm.BASE].answers[place],
            "adapter": arms[Arm.ADAPTER].answers[place],
        }
        for place, row in enumerate(rows[:SAMPLES])
    ]
