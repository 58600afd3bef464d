"""Fits the scaler of each classifier and the weights of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.calibration.model import Axis, Stage, TemperatureScaler, log_chances, log_odds
from router.extensions.calibration.cascade import Array
from router.extensions.calibration.logit import DesignMatrix, fit_nonnegative, plain
from router.extensions.calibration.rows import Ballot, spoke

PENALTY = 3e-3  # of the squared distance from the prior, beside a mean loss in nats
OWN_LIKE_ROWS = 70.0  # the penalty of weights that each adapter has of its own, beside a sum over rows
MOST_PAIRS = 640  # of such weights in one stage; where it would be more, there are none
COLDEST, WARMEST = 0.05, 20.0  # temperatures
ENOUGH = 10  # rows of a kind from which a weight of its own is fitted


def fit_scaler(
    ballots: Sequence[Ballot], place: int, names: Sequence[str], share: Array
) -> TemperatureScaler:
    """Temperature, and a bias for none if there are rows of none, by the likelihood of the labels.

    `share` [rows] weighs the rows. The default scaler where the classifier hardly ever spoke.
    """
    heard = [i for i, ballot in enumerate(ballots) if spoke(ballot.votes[place])]
    if len(heard) < ENOUGH:
        return TemperatureScaler()
    target = labels_of([ballots[i] for i in heard], names)
    features = np.zeros((len(heard), len(names) + 1, 2))
    features[:, :, 0] = [log_chances(ballots[i].votes[place].scores, names) for i in heard]
    features[:, -1, 1] = 1.0
    known = any(not ballot.row.label for ballot in ballots)
    used = features if known else features[:, :, :1]
    part = share[heard] / share[heard].sum()
    weights = fit_nonnegative(plain(used), target, np.array([1.0, 0.0])[: used.shape[2]], PENALTY, 1, part)
    warm = 1 / max(float(weights[0]), 1 / WARMEST)
    return TemperatureScaler(max(warm, COLDEST), float(weights[1]) if known else 0.0)


def fit_stage(
    ballots: Sequence[Ballot],
    scalers: Mapping[str, TemperatureScaler],
    classifiers: Sequence[str],
    kinds: Mapping[str, Axis],
    share: Array,
    own: bool = True,
) -> Stage:
    """Weights of the first classifiers' votes together (stop is left at never). `kinds` are the adapters.
    Without `own` no adapter has weights of its own."""
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
    common = _common(logs) if own else logs[:, 0, :0]
    design = DesignMatrix(np.concatenate([logs, tasks, marks], axis=2), common)
    prior, penalty = np.zeros(design.weights), np.full(design.weights, PENALTY)
    prior[:count] = 1 / count
    penalty[design.shared :] = OWN_LIKE_ROWS * float((share**2).sum())
    found = fit_nonnegative(design, labels_of(ballots, names), prior, penalty, count, share)
    weights = iter(found.tolist())
    return Stage(
        weights={name: next(weights) for name in classifiers},
        task_weights={name: next(weights) for name in classifiers[: tasks.shape[2]]},
        bias={axis.value: next(weights) for axis in axes},
        none=next(weights),
        declined={name: next(weights) for name in mute},
        **_own(design.own(found), names, classifiers),
        **fit_novelty(ballots, scalers, classifiers, names, share),
    )


def _common(logs: Array) -> Array:
    """[rows, 1 + (names + 1) * classifiers] a constant and all log chances, as evidence for every class; of
    no columns where that would be too many weights."""
    rows, labels, count = logs.shape
    wanted = count * labels**2 <= MOST_PAIRS
    return np.concatenate([np.ones((rows, 1)), logs.reshape(rows, -1)], axis=1)[:, : None if wanted else 0]


def _own(own: Array, names: Sequence[str], classifiers: Sequence[str]) -> dict[str, Any]:
    """Weights [1 + (names + 1) * classifiers, names + 1] as fields of a Stage; none of none."""
    if not len(own):
        return {}
    labels = (*names, "")
    pairs = own[1:].reshape(len(labels), len(classifiers), len(labels))

    def by_label(row: Array) -> dict[str, float]:
        return dict(zip(labels, row.tolist(), strict=True))

    return {
        "own": by_label(own[0]),
        "pairs": {
            name: {told: by_label(pairs[t, k]) for t, told in enumerate(labels)}
            for k, name in enumerate(classifiers)
        },
    }


def _logs(ballots: Sequence[Ballot], scaler: TemperatureScaler, place: int, names: Sequence[str]) -> Array:
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
    scalers: Mapping[str, TemperatureScaler],
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
    weights = fit_nonnegative(plain(features), strange, prior, PENALTY, len(classifiers), share)
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
