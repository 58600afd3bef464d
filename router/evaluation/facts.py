"""What a report card is about: adapter, base, data, machine, and scores that cost nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from router.engine.base import BaseInfo
from router.evaluation.metrics import Task
from router.evaluation.ranking import ranked_rows
from router.evaluation.scoring import METRICS, scores
from router.evaluation.subject import Subject
from router.training.data import Splits
from router.training.machine import describe_machine
from router.training.recipe import Recipe


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
