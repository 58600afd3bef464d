"""How long training takes here: a few steps of the recipe itself, timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

from router.training.base import LoadedBase
from router.training.batch import Example
from router.training.order import rows_of_step
from router.training.recipe import Recipe
from router.training.run import add_lora
from router.training.trainer import Trainer

STEPS = 4  # the first warms up, the last ends with an evaluation, the faster one of the others counts
JUDGED = 32  # validation rows


def estimate_seconds(
    recipe: Recipe, base: LoadedBase, train: Sequence[Example], valid: Sequence[Example]
) -> float:
    """Seconds of the whole run, early stopping left aside. `base` is not fit for use afterwards."""
    plan = recipe.train.model_copy(update={"steps": STEPS, "eval_every": STEPS})
    trainer = Trainer(add_lora(base.model, recipe), train, valid[:JUDGED], plan, base.device)
    trainer.run(lambda _: True)
    clock = [record["seconds"] for record in trainer.progress.history]
    took = [later - earlier for earlier, later in pairwise(clock)]
    lengths = [len(example) for example in train]
    tokens = [
        sum(lengths[row] for row in rows_of_step(number, lengths, plan.batch, plan.seed))
        for number in range(2, STEPS + 1)
    ]
    per_token = min(seconds / count for seconds, count in zip(took[:-1], tokens[:-1], strict=True))
    judging = max(0.0, took[-1] - per_token * tokens[-1]) / len(valid[:JUDGED])
    evaluations = math.ceil(recipe.train.steps / recipe.train.eval_every)
    row = per_token * mean(lengths)
    return recipe.train.steps * min(plan.batch, len(train)) * row + evaluations * len(valid) * judging


def in_words(seconds: float) -> str:
    """Rounded to what such an estimate is worth."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
