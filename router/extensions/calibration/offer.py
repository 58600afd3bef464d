"""What is offered where the rows cannot prove the target: fitted on all of them, judged by cross-validation.

Every row is judged by a model that was fitted without it, at thresholds that were chosen without it. The
bounds are those of its counts (Clopper and Pearson). They are an estimate and no proof, since
the models of the folds share rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import numpy as np

from router.calibration.model import Calibration
from router.calibration.targets import Goal, Tested
from router.extensions.calibration.cascade import Run, outcome_at
from router.extensions.calibration.certify import (
    NOVELTIES,
    THRESHOLDS,
    Pair,
    binomial_tail,
    sweep,
    upper_bound,
)
from router.extensions.calibration.evaluation import held_out_report
from router.extensions.calibration.fit import (
    FIT_SHARE,
    FOLDS,
    Setting,
    check_rows,
    fit_calibration,
    run_of,
    split_rows,
)
from router.extensions.calibration.rows import Ballot, stratified_folds

METHOD = "cross-validation"
MOST_NEEDED = 100_000  # labelled requests; a target that needs more is called out of reach
MOST_TARGET = 0.999


@dataclass(frozen=True, slots=True)
class Offer:
    """A calibration whose targets are what its rows support, and the labelled requests that the target which
    was asked for would need at the same error; None: no number is enough. `wrong` are the rows that are
    routed to a wrong adapter."""

    calibration: Calibration
    needed: int | None
    wrong: tuple[Ballot, ...] = ()


def offer(
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    setting: Setting,
    general: Calibration | None = None,
) -> Offer:
    """Of the same rows as `calibrate`, each with votes of classifiers that did not learn from it.

    With `general`, votes are pooled by its weights, which were fitted on other adapters, and the rows choose
    the thresholds alone. Classifiers that it does not know are left out. Weights that are fitted on a few
    rows for each adapter are worse: they are sure of what resembles those rows.

    Raises CalibrationError for rows or votes that cannot be used at all.
    """
    check_rows(known, strange, setting)
    goal = setting.goal
    if general is not None:
        found = _bound_to(general, setting)
        known, strange = ([_as_known_to(general, ballot) for ballot in rows] for rows in (known, strange))
        guide = (run_of(found, known, setting.kinds), run_of(found, strange, setting.kinds))
    else:
        found, guide = fit_calibration(known, strange, setting)
    stops = [stage.stop for stage in found.stages]
    threshold, limit = choose_pair(guide, stops, goal)
    step, wrong = _cross_validated(guide, (known, strange), stops, goal, (threshold, limit))
    found = replace(
        found,
        threshold=threshold,
        novelty_limit=limit,
        target=_rounded_up(step.error_bound, goal.target),
        ood_target=_rounded_up(step.strange_bound, goal.ood_target),
    )
    counts = {
        "fitted_on": len(known),
        "proven_on": len(known),
        "ood_fitted_on": len(strange),
        "ood_proven_on": len(strange),
    }
    report = {
        "method": METHOD,
        "asked": asdict(goal),
        "counts": counts,
        "proof": asdict(step),
        "tested": [asdict(step)],
        "held_out": _held_out(found, known, strange, setting, general is None),
    }
    return Offer(replace(found, report=report), needed_rows(guide[0], stops, limit, goal), wrong)


def choose_pair(guide: tuple[Run, Run], stops: Sequence[float], goal: Goal) -> Pair:
    """Of the pairs whose errors on these rows are within the goal the one that routes the most, else the one
    that comes closest."""
    limits = NOVELTIES if len(guide[1].confidence) else (1.0,)
    known, strange = (sweep(run, stops, THRESHOLDS, limits) for run in guide)
    error = (known.errors + 0.5) / (known.routed + 1) / goal.target
    strays = (strange.routed + 0.5) / (len(guide[1].confidence) + 1) / goal.ood_target
    worst = np.maximum(error, strays) if len(guide[1].confidence) else error
    good = worst <= 1
    if good.any():
        place = int(np.where(good, known.routed, -1).argmax())
    else:
        place = int(np.where(known.routed > 0, worst, np.inf).argmin())
    row, column = np.unravel_index(place, worst.shape)
    return THRESHOLDS[int(row)], limits[int(column)]


def _cross_validated(
    guide: tuple[Run, Run],
    rows: tuple[Sequence[Ballot], Sequence[Ballot]],
    stops: Sequence[float],
    goal: Goal,
    pair: Pair,
) -> tuple[Tested, tuple[Ballot, ...]]:
    """What comes of each fold at the pair that is chosen on the others, as that of `pair`, and the rows that
    are routed wrongly."""
    folds = tuple(stratified_folds([ballot.row for ballot in part], FOLDS) for part in rows)
    routed = errors = strays = 0
    wrong: list[Ballot] = []
    for known_fold, strange_fold in zip(*folds, strict=True):
        away = (known_fold, strange_fold)
        others = tuple(
            _part(run, [i for i in range(len(run.confidence)) if i not in set(out)])
            for run, out in zip(guide, away, strict=True)
        )
        chosen = choose_pair((others[0], others[1]), stops, goal)
        known, strange = (
            outcome_at(_part(run, out), stops, *chosen) for run, out in zip(guide, away, strict=True)
        )
        routed, errors, strays = routed + known.count, errors + known.errors, strays + strange.count
        for part, out, there in zip(rows, away, (known, strange), strict=True):
            bad = there.routed & ~there.right
            wrong += [part[i] for i, is_bad in zip(out, bad, strict=True) if is_bad]
    bound = upper_bound(strays, len(rows[1]), goal.delta) if rows[1] else 0.0
    step = Tested(*pair, routed, errors, upper_bound(errors, routed, goal.delta), strays, bound)
    return step, tuple(wrong)


def _part(run: Run, places: Sequence[int]) -> Run:
    at = np.asarray(places, np.int64)
    return Run(run.choice[at], run.confidence[at], run.novelty[at], run.right[at])


def needed_rows(known: Run, stops: Sequence[float], limit: float, goal: Goal) -> int | None:
    """Labelled requests that would prove the target, if they go wrong as often as these do at the threshold
    that needs the fewest; a share of them is for fitting."""
    found = sweep(known, stops, THRESHOLDS, [limit])
    counts = zip(found.errors[:, 0].tolist(), found.routed[:, 0].tolist(), strict=True)
    needed = [
        math.ceil(least * len(known.confidence) / routed / (1 - FIT_SHARE))
        for errors, routed in counts
        if routed and (least := _routed_needed((errors + 0.5) / (routed + 1), goal)) is not None
    ]
    return min((count for count in needed if count <= MOST_NEEDED), default=None)


def _routed_needed(rate: float, goal: Goal) -> int | None:
    """Routed requests that prove the target where this share of them goes wrong; None: too many."""
    if rate >= goal.target:
        return None
    low, high = 0, 16
    while binomial_tail(math.ceil(rate * high), high, goal.target) > goal.delta:
        low, high = high, high * 2
        if high > MOST_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = binomial_tail(math.ceil(rate * middle), middle, goal.target) <= goal.delta
        low, high = (low, middle) if enough else (middle, high)
    return high


def _rounded_up(bound: float, target: float) -> float:
    """A target that the bound keeps: the one that was asked for, or the bound in tenths of a per cent."""
    return max(target, min(math.ceil(bound * 1000) / 1000, MOST_TARGET))


def _bound_to(general: Calibration, setting: Setting) -> Calibration:
    """The weights of `general` for the adapters and classifiers of a setting."""
    order = tuple(name for name in setting.classifiers if name in general.scalers)
    asked = {name: setting.binding.classifiers[name] for name in order}
    return replace(
        general,
        target=setting.goal.target,
        delta=setting.goal.delta,
        ood_target=setting.goal.ood_target,
        axes=setting.axes,
        binding=replace(setting.binding, classifiers=asked),
        left_out=(*setting.left_out, *(name for name in setting.classifiers if name not in order)),
        profiles=setting.profiles,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _as_known_to(general: Calibration, ballot: Ballot) -> Ballot:
    """With the votes that `general` weighs."""
    return replace(ballot, votes=tuple(vote for vote in ballot.votes if vote.classifier in general.scalers))


def _held_out(
    found: Calibration,
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    setting: Setting,
    fitted: bool,
) -> dict[str, object]:
    """The report on rows that the model did not see, at the thresholds of `found`. A model that is `fitted`
    on rows is fitted on a third of them for that."""
    (fit_known, rest_known), (fit_strange, rest_strange) = split_rows(known), split_rows(strange)
    model = fit_calibration(fit_known, fit_strange, setting)[0] if fitted else found
    model = replace(model, threshold=found.threshold, novelty_limit=found.novelty_limit)
    return held_out_report(model, rest_known, rest_strange, setting.kinds)
