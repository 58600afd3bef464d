"""What a report card is about: adapter, base, data, machine, and scores that cost nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from router.evaluation.measure import Task, scorers
from router.evaluation.subject import Subject
from router.training.data import Splits
from router.training.machine import describe_machine
from router.training.recipe import Recipe

READINGS = {
    "exact_match": "Format-blind: the gold label, and no other, is named anywhere in the answer. "
    "Likeliest label: of all labels the one with the least loss per token is the gold one, so that "
    "format plays no part.",
    "chrf": "chrF runs from 0 to 100. Format-blind: only the line or quoted part of each answer that is "
    "nearest to the gold counts.",
}


def collect_facts(subject: Subject, recipe: Recipe, splits: Splits, task: Task) -> dict[str, Any]:
    """The report's head."""
    manifest, test = subject.manifest, recipe.data.test
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
            "shots": recipe.evaluation.shots,
        },
        "metric": recipe.evaluation.metric.replace("_", " "),
        "scale": 1 if recipe.evaluation.metric == "chrf" else 3,
        "reading": READINGS[recipe.evaluation.metric],
        "references": _references(recipe, splits, task),
        "machine": describe_machine(subject.base.device),
    }


def _references(recipe: Recipe, splits: Splits, task: Task) -> dict[str, float]:
    """What costs nothing: naming the commonest label, or copying the input."""
    if recipe.label_task:
        commonest, _ = Counter(row.response for row in splits.train).most_common(1)[0]
        name, answers = "always the commonest label", [commonest for _ in task.rows]
    else:
        name, answers = "copying the input", [row.bare for row in task.rows]
    score, _ = scorers(task, answers)
    return {name: round(score.score(np.arange(len(answers))), 4)}
