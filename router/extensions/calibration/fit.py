"""`route calibrate`: from labelled requests with votes to a calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from router.calibration.model import NEVER, Axes, Axis, Binding, Calibration, CalibrationError
from router.calibration.targets import Goal
from router.extensions.calibration.cascade import Array, Run, join_runs, run_cascade
from router.extensions.calibration.certify import THRESHOLDS, certify, require_enough
from router.extensions.calibration.evaluation import held_out_report
from router.extensions.calibration.rows import (
    Ballot,
    check_votes,
    one_of_each,
    stratified_folds,
    stratified_split,
)
from router.extensions.calibration.stages import fit_scaler, fit_stage, shares
from router.types import AdapterProfile

FIT_SHARE = 1 / 3  # of the rows; the rest proves the thresholds
FOLDS = 5
STOP_SHARE = 0.2  # of the target error is what an early stop may cost; more is dear in coverage
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What calibration is for: classifiers in order, adapters by name with their axes and what is known of
    them, goals, binding."""

    classifiers: tuple[str, ...]
    kinds: Mapping[str, Axis]
    axes: Axes
    goal: Goal
    binding: Binding
    left_out: tuple[str, ...] = ()
    profiles: tuple[AdapterProfile, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters."""
        return tuple(self.kinds)


def calibrate(
    known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting, say: Say = lambda text: None
) -> Calibration:
    """Fit on a third of the rows, prove on the others, of each group on one.

    `known` are labelled requests, those of none of the adapters among them; `strange` are
    out-of-distribution ones, all labelled "". Raises CalibrationError, saying what to do.
    """
    parts = split_rows(known), split_rows(strange)
    return prove((parts[0][0], parts[1][0]), (parts[0][1], parts[1][1]), setting, say)


def prove(
    fit: tuple[Sequence[Ballot], Sequence[Ballot]],
    test: tuple[Sequence[Ballot], Sequence[Ballot]],
    setting: Setting,
    say: Say = lambda text: None,
) -> Calibration:
    """Fit on (known, strange) rows and prove on others. Raises CalibrationError, saying what to do."""
    (fit_known, fit_strange), (test_known, test_strange) = fit, test
    check_rows([*fit_known, *test_known], [*fit_strange, *test_strange], setting)
    require_enough(len(test_known), len(test_strange), setting.goal)
    say(f"fitting on {len(fit_known)} requests and {len(fit_strange)} out-of-distribution ones")
    found, fitting = fit_calibration(fit_known, fit_strange, setting)
    say(f"proving on {len(test_known)} requests and {len(test_strange)} out-of-distribution ones")
    testing = run_of(found, test_known, setting.kinds), run_of(found, test_strange, setting.kinds)
    step, tested = certify(fitting, testing, [stage.stop for stage in found.stages], setting.goal)
    found = replace(found, threshold=step.threshold, novelty_limit=step.novelty_limit)
    report = {
        "counts": {
            "fitted_on": len(fit_known),
            "proven_on": len(test_known),
            "ood_fitted_on": len(fit_strange),
            "ood_proven_on": len(test_strange),
        },
        "proof": asdict(step),
        "tested": [asdict(other) for other in tested],
        "held_out": held_out_report(found, test_known, test_strange, setting.kinds),
    }
    return replace(found, report=report)


def check_rows(known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting) -> None:
    """Raises CalibrationError for rows that nothing can be fitted on."""
    if not setting.names:
        raise CalibrationError("there are no adapters to route to: name their folder with --adapters-dir")
    check_votes([*known, *strange], setting.classifiers)
    labels = {ballot.row.label for ballot in known}
    if len(labels) < 2:
        only = repr(next(iter(labels), ""))
        raise CalibrationError(f"all requests have the label {only}: give requests for several adapters")
    missing = sorted(set(setting.names) - labels)
    if missing:
        raise CalibrationError(
            f"no request is labelled {', '.join(map(repr, missing))}: every adapter needs some, or its "
            "errors would not count"
        )
    wrong = next((ballot.row for ballot in strange if ballot.row.label), None)
    if wrong is not None:
        raise CalibrationError(
            f"the out-of-distribution request {wrong.text[:60]!r} has the label {wrong.label!r}: label "
            'it "", or move it to the labelled requests'
        )


def split_rows(ballots: Sequence[Ballot]) -> tuple[list[Ballot], list[Ballot]]:
    """Those for fitting, and those for the proof."""
    first, rest = stratified_split([ballot.row for ballot in ballots], FIT_SHARE)
    return [ballots[i] for i in first], one_of_each([ballots[i] for i in rest])


def fit_calibration(
    known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting
) -> tuple[Calibration, tuple[Run, Run]]:
    """Everything but the thresholds, which are left at never; and how the rows look to models that were
    fitted without them (cross-fitting), as a guide to thresholds."""
    found = _fit_model(known, strange, setting)
    guide = _cross_fitted(known, strange, setting)
    stops = fit_stops(guide[0], setting.goal)
    stages = tuple(replace(stage, stop=stop) for stage, stop in zip(found.stages, stops, strict=True))
    return replace(found, stages=stages), guide


def _fit_model(known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting) -> Calibration:
    ballots = [*known, *strange]
    share = shares(ballots, len(strange))
    scalers = {
        name: fit_scaler(ballots, place, setting.names, share)
        for place, name in enumerate(setting.classifiers)
    }
    stages = tuple(
        fit_stage(ballots, scalers, setting.classifiers[: i + 1], setting.kinds, share)
        for i in range(len(setting.classifiers))
    )
    return Calibration(
        scalers=scalers,
        stages=stages,
        threshold=NEVER,
        novelty_limit=1.0,
        target=setting.goal.target,
        delta=setting.goal.delta,
        ood_target=setting.goal.ood_target,
        axes=setting.axes,
        binding=setting.binding,
        left_out=setting.left_out,
        profiles=setting.profiles,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cross_fitted(known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting) -> tuple[Run, Run]:
    parts: tuple[list[Run], list[Run]] = ([], [])
    places: tuple[list[int], list[int]] = ([], [])
    folds = tuple(stratified_folds([ballot.row for ballot in rows], FOLDS) for rows in (known, strange))
    for i in range(FOLDS):
        away = tuple(set(fold[i]) for fold in folds)
        kept = tuple(
            [b for j, b in enumerate(rows) if j not in out]
            for rows, out in zip((known, strange), away, strict=True)
        )
        model = _fit_model(kept[0], kept[1], setting)
        for side, rows in enumerate((known, strange)):
            parts[side].append(run_of(model, [rows[j] for j in folds[side][i]], setting.kinds))
            places[side].extend(folds[side][i])
    return join_runs(parts[0], places[0]), join_runs(parts[1], places[1])


def run_of(of: Calibration, rows: Sequence[Ballot], kinds: Mapping[str, Axis]) -> Run:
    """Every stage of a calibration on every row, for adapters of these kinds."""
    return run_cascade(rows, of.stages, of.scalers, of.axes, kinds)


def fit_stops(fitting: Run, goal: Goal) -> tuple[float, ...]:
    """One for each stage; the last never needs it.

    The lowest confidence at which, on the rows for fitting, those that stop err clearly less than the target
    and those added last do, too. Whether it was well chosen is not believed but tested: the proof of the
    threshold is over the cascade with its stops.
    """
    stages = fitting.confidence.shape[1]
    return (*(_stop(fitting.confidence[:, j], fitting.right[:, j], goal) for j in range(stages - 1)), NEVER)


def _stop(sure: Array, right: Array, goal: Goal) -> float:
    found = NEVER
    for threshold in THRESHOLDS:
        stopped = sure >= threshold
        wrong = int((stopped & ~right).sum())
        if (wrong + 0.5) / (int(stopped.sum()) + 1) <= STOP_SHARE * goal.target:
            found = threshold
        elif wrong:
            break
    return found
