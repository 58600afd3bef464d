"""The cascade over many rows at once: what each stage decides, and the result at given thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.calibration.model import Axes, Axis, Stage, TemperatureScaler, choose, pool_votes
from router.extensions.calibration.rows import Ballot

Array = np.ndarray[Any, Any]  # shapes are told in docstrings


@dataclass(frozen=True, slots=True)
class Run:
    """[rows, stages] what each stage would choose: place among names, confidence, novelty."""

    choice: Array
    confidence: Array
    novelty: Array
    right: Array


def join_runs(parts: Sequence[Run], places: Sequence[int]) -> Run:
    """Parts one after the other, put back in order: row i of all of them goes to `places[i]`."""
    order = np.argsort(np.asarray(places, np.int64))
    columns = ("choice", "confidence", "novelty", "right")
    return Run(*(np.concatenate([getattr(p, c) for p in parts])[order] for c in columns))


def run_cascade(
    ballots: Sequence[Ballot],
    stages: Sequence[Stage],
    scalers: Mapping[str, TemperatureScaler],
    axes: Axes,
    kinds: Mapping[str, Axis],
) -> Run:
    """Every stage on every ballot; `kinds` are the adapters, in the order of the places."""
    names = tuple(kinds)
    shape = (len(ballots), len(stages))
    choice, right = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    confidence, novelty = np.zeros(shape), np.zeros(shape)
    for i, ballot in enumerate(ballots):
        for j, stage in enumerate(stages):
            opinion = pool_votes(stage, scalers, ballot.votes[: j + 1], kinds)
            chosen = choose(opinion, axes, kinds, names)
            if chosen is None:
                continue
            choice[i, j] = names.index(chosen.adapter)
            confidence[i, j], novelty[i, j] = chosen.confidence, opinion.novelty
            right[i, j] = chosen.adapter == ballot.row.label
    return Run(choice, confidence, novelty, right)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """[rows] whether it was routed, by which stage (the last if by none), and whether rightly."""

    routed: Array
    stage: Array
    right: Array

    @property
    def errors(self) -> int:
        """Requests routed to a wrong adapter."""
        return int((self.routed & ~self.right).sum())

    @property
    def count(self) -> int:
        """Requests routed."""
        return int(self.routed.sum())


def outcome_at(of: Run, stops: Sequence[float], threshold: float, novelty_limit: float) -> RunOutcome:
    """The first stage that is sure enough to stop, else the last one if it is sure."""
    least = np.maximum(threshold, [*stops[:-1], 0.0])
    sure = (of.confidence >= least) & (of.novelty <= novelty_limit)
    routed = np.asarray(sure.any(axis=1))
    stage = np.where(routed, sure.argmax(axis=1), len(stops) - 1)
    right: Array = of.right[np.arange(len(stage)), stage] & routed
    return RunOutcome(routed, stage, right)
