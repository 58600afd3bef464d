"""Overfitting: how the adapter does on rows it has seen and on rows it has not."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from math import hypot

from router.evaluation.bootstrap import Estimate, resample
from router.evaluation.losses import row_losses
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel
from router.training.data import Splits

SPLITS = ("train", "valid", "test")


def measure(subject: Subject, splits: Splits, rows: int) -> dict[str, dict[str, float]]:
    """The adapter, teacher-forced, on at most `rows` rows of each split (drawn by a fixed seed).

    Returns {"train": {"loss", "low", "high", "exact", "rows"}, "valid": ..., "test": ...}: nats per
    gold-answer token with a bootstrap interval, and how often greedy decoding gives the gold answer.
    """
    model = AnswerModel(subject.model)
    found: dict[str, dict[str, float]] = {}
    for name in SPLITS:
        every = list(getattr(splits, name))
        drawn = random.Random(0).sample(every, min(rows, len(every)))
        losses = row_losses(model, subject.rendering.examples(drawn))
        loss = resample(losses, len(drawn)).estimate()
        numbers = {
            "loss": loss.value,
            "low": loss.low,
            "high": loss.high,
            "exact": float(losses.exact.mean()),
        }
        found[name] = {key: round(number, 6) for key, number in numbers.items()} | {"rows": len(drawn)}
    model.close()
    return found


def gap(splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Loss on test rows minus loss on training rows, {"value", "low", "high"}.

    The rows are not paired, so the two intervals are joined by the MOVER rule (Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095).
    """
    train, test = splits["train"], splits["test"]
    value = test["loss"] - train["loss"]
    below = hypot(test["loss"] - test["low"], train["high"] - train["loss"])
    above = hypot(test["high"] - test["loss"], train["loss"] - train["low"])
    joined = asdict(Estimate(value, value - below, value + above))
    return {name: round(number, 6) for name, number in joined.items()}


def overfitting(splits: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: does it overfit? `splits` is what `measure` returns."""
    found = gap(splits)
    numbers = f"{found['value']:+.3f} nats per gold token [{found['low']:+.3f}, {found['high']:+.3f}]"
    exact = f"greedy exact {splits['train']['exact']:.3f} on train, {splits['test']['exact']:.3f} on test"
    if found["low"] > 0:
        return f"It overfits: the loss on test rows is above that on training rows by {numbers} ({exact})."
    if found["high"] < 0:
        return f"It does not overfit: test rows are easier for it than training rows, {numbers} ({exact})."
    return f"No overfitting that so few rows can show: test - train is {numbers}, zero included ({exact})."
