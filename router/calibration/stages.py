"""Fits the scaler of each classifier and the weights of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.calibration.cascade import Array
from router.calibration.model import Scaler, Stage, log_chances, log_odds
from router.calibration.rows import Ballot, spoke
from router.classifiers.axes import Axis
from router.classifiers.regression import softmax

PENALTY = 3e-3  # of the squared distance from the prior, beside a mean loss in nats
COLDEST, WARMEST = 0.05, 20.0  # temperatures
ENOUGH = 10  # rows of a kind from which a weight of its own is fitted
NEWTON_STEPS = 50
CLOSE = 1e-8  # a step so short is the last


def fit_scaler(ballots: Sequence[Ballot], place: int, names: Sequence[str], share: Array) -> Scaler:
    """Temperature, and a bias for none if there are rows of none, by the likelihood of the labels.

    `share` [rows] weighs the rows. The default scaler where the classifier hardly ever spoke.
    """
    heard = [i for i, ballot in enumerate(ballots) if spoke(ballot.votes[place])]
    if len(heard) < ENOUGH:
        return Scaler()
    target = labels_of([ballots[i] for i in heard], names)
    features = np.zeros((len(heard), len(names) + 1, 2))
    features[:, :, 0] = [log_chances(ballots[i].votes[place].scores, names) for i in heard]
    features[:, -1, 1] = 1.0
    known = any(not ballot.row.label for ballot in ballots)
    used = features if known else features[:, :, :1]
    part = share[heard] / share[heard].sum()
    weights = fit_nonnegative(used, target, np.array([1.0, 0.0])[: used.shape[2]], PENALTY, 1, part)
    warm = 1 / max(float(weights[0]), 1 / WARMEST)
    return Scaler(max(warm, COLDEST), float(weights[1]) if known else 0.0)


def fit_stage(
    ballots: Sequence[Ballot],
    scalers: Mapping[str, Scaler],
    classifiers: Sequence[str],
    kinds: Mapping[str, Axis],
    share: Array,
) -> Stage:
    """Weights of the first classifiers' votes together (stop is left at never). `kinds` are the adapters."""
    names, count = tuple(kinds), len(classifiers)
    logs = np.stack([_logs(ballots, scalers[name], k, names) for k, name in enumerate(classifiers)], axis=2)
    axes = [axis for axis in (Axis.TASK, Axis.PLAIN) if 0 < list(kinds.values()).count(axis) < len(kinds)]
    task = np.array([axis is Axis.TASK for axis in kinds.values()] + [False], float)
    tasks = logs * task[:, None] if Axis.TASK in axes else logs[:, :, :0]
    silent = {name: _silent(ballots, k) for k, name in enumerate(classifiers)}
    mute = [name for name, rows in silent.items() if ENOUGH <= rows.sum() <= len(ballots) - ENOUGH]
    marks = np.zeros((len(ballots), len(names) + 1, len(axes) + 1 + len(mute)))
    for column, axis in enumerate(axes):
        marks[:, :-1, column] = [kind is axis for kind in kinds.values()]
    marks[:, -1, len(axes)] = 1.0
    for column, name in enumerate(mute, len(axes) + 1):
        marks[:, -1, column] = silent[name]
    features = np.concatenate([logs, tasks, marks], axis=2)
    prior = np.zeros(features.shape[2])
    prior[:count] = 1 / count
    weights = iter(
        fit_nonnegative(features, labels_of(ballots, names), prior, PENALTY, count, share).tolist()
    )
    return Stage(
        weights={name: next(weights) for name in classifiers},
        task_weights={name: next(weights) for name in classifiers[: tasks.shape[2]]},
        bias={axis.value: next(weights) for axis in axes},
        none=next(weights),
        declined={name: next(weights) for name in mute},
        **fit_novelty(ballots, scalers, classifiers, names, share),
    )


def _logs(ballots: Sequence[Ballot], scaler: Scaler, place: int, names: Sequence[str]) -> Array:
    """[rows, names + 1] log chances; zeros where the classifier said nothing."""
    found = np.zeros((len(ballots), len(names) + 1))
    for i, ballot in enumerate(ballots):
        if spoke(ballot.votes[place]):
            found[i] = np.log(scaler.chances(ballot.votes[place].scores, names))
    return found


def _silent(ballots: Sequence[Ballot], place: int) -> Array:
    """[rows] 1 where the classifier was asked and had nothing to say."""
    votes = [ballot.votes[place] for ballot in ballots]
    return np.array([not vote.error and not spoke(vote) for vote in votes], float)


def fit_novelty(
    ballots: Sequence[Ballot],
    scalers: Mapping[str, Scaler],
    classifiers: Sequence[str],
    names: Sequence[str],
    share: Array,
) -> dict[str, Any]:
    """Weights of the classifiers' log-odds of none in a test of strange against known requests, and its bias,
    as fields of a Stage.

    Nothing where there are too few of either.
    """
    strange = np.array([not ballot.row.label for ballot in ballots], np.int64)
    if min(strange.sum(), len(strange) - strange.sum()) < ENOUGH:
        return {}
    features = np.zeros((len(ballots), 2, len(classifiers) + 1))
    for k, name in enumerate(classifiers):
        for i, ballot in enumerate(ballots):
            if spoke(ballot.votes[k]):
                features[i, 1, k] = log_odds(scalers[name].chances(ballot.votes[k].scores, names)[-1])
    features[:, 1, -1] = 1.0
    prior = np.append(np.full(len(classifiers), 1 / len(classifiers)), 0.0)
    weights = fit_nonnegative(features, strange, prior, PENALTY, len(classifiers), share)
    found = dict(zip(classifiers, weights.tolist(), strict=False))
    return {"novelty": found, "novelty_bias": float(weights[-1])}


def shares(ballots: Sequence[Ballot], strange: int) -> Array:
    """[rows] weights that sum to 1: the last `strange` rows, which came apart, weigh with all other rows of
    none together at most like one adapter's; their true share among requests is not known."""
    weights = np.ones(len(ballots))
    if strange:
        known = [ballot.row.label for ballot in ballots[: len(ballots) - strange]]
        adapters = len({label for label in known if label}) or 1
        room = max(0.0, sum(map(bool, known)) / adapters - known.count(""))
        weights[len(ballots) - strange :] = min(1.0, max(room, 1.0) / strange)
    total: Array = weights / weights.sum()
    return total


def labels_of(ballots: Sequence[Ballot], names: Sequence[str]) -> Array:
    """Place of each row's label among `names`; none is the last."""
    place = {name: i for i, name in enumerate((*names, ""))}
    return np.array([place[ballot.row.label] for ballot in ballots], np.int64)


# -- multinomial logistic regression with weights that all classes share: the one model that is fitted here
#
# Class c of row i has the logit `features[i, c] @ weights`. A temperature, the stacking of classifiers
# (Wolpert, 1992) and a test for strange requests are all of this kind. Convex, so Newton's method finds the
# one optimum; a penalty pulls towards `prior`, so that few rows do not move the weights far.


def fit_nonnegative(
    features: Array, target: Array, prior: Array, penalty: float, positive: int, share: Array | None = None
) -> Array:
    """Like `fit_logit`, but the first `positive` weights are not below 0; who would be is held at 0."""
    kept = np.ones(len(prior), bool)
    while True:
        weights = np.zeros(len(prior))
        weights[kept] = fit_logit(features[:, :, kept], target, prior[kept], penalty, share)
        below = (weights < 0) & (np.arange(len(prior)) < positive)
        if not below.any():
            return weights
        kept &= ~below


def fit_logit(
    features: Array, target: Array, prior: Array, penalty: float, share: Array | None = None
) -> Array:
    """Weights [d] for `features` [rows, classes, d] and `target` [rows].

    `share` [rows] weighs the rows and sums to 1 (default: alike); `penalty` is that of all rows together.
    """
    rows = len(target)
    share = np.full(rows, 1 / rows) if share is None else share
    weights = prior.astype(np.float64)
    chosen = features[np.arange(rows), target]

    def objective(w: Array) -> float:
        return log_loss(features, target, w, share) + penalty / 2 * float(((w - prior) ** 2).sum())

    value = objective(weights)
    for _ in range(NEWTON_STEPS):
        chances = softmax(features @ weights)
        mean = np.einsum("ic,icd->id", chances, features)
        gradient = share @ (mean - chosen) + penalty * (weights - prior)
        spread = np.einsum("ic,icd,ice->ide", chances, features, features) - mean[:, :, None] * mean[:, None]
        curvature = np.einsum("i,ide->de", share, spread) + (penalty + 1e-9) * np.eye(len(prior))
        step = np.linalg.solve(curvature, gradient)
        value, weights, moved = _descend(objective, value, weights, step)
        if moved < CLOSE:
            break
    return weights


def _descend(objective: Any, value: float, weights: Array, step: Array) -> tuple[float, Array, float]:
    """The first halving of `step` that does not go up."""
    size = 1.0
    while size > 1e-6:
        trial = weights - size * step
        if (there := objective(trial)) <= value:
            return there, trial, float(np.abs(size * step).max())
        size /= 2
    return value, weights, 0.0


def log_loss(features: Array, target: Array, weights: Array, share: Array) -> float:
    """Weighted mean negative log-likelihood, nats."""
    chances = softmax(features @ weights)
    picked = chances[np.arange(len(target)), target]
    return float(-(share * np.log(np.maximum(picked, 1e-12))).sum())
