"""A calibration for the same adapters with further examples: proven again on the rows that it keeps.

Scalers and weights stay as they were fitted. The candidates are those of the first proof in their order,
which was fixed before any row was seen, so that fixed-sequence testing holds again. Rows that were looked at
many times flatter: after some tens of changes calibrate on fresh requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from router.calibration.model import Calibration, CalibrationError
from router.calibration.targets import Goal, Unproven, last_before_failure
from router.extensions.calibration.cascade import Run, outcome_at, run_cascade
from router.extensions.calibration.certify import try_candidate
from router.extensions.calibration.evaluation import held_out_report
from router.extensions.calibration.fit import Setting
from router.extensions.calibration.rows import Ballot, check_votes


class TargetBroken(CalibrationError):
    """No candidate keeps the targets; `against` are the rows that are routed wrongly as things stand."""

    def __init__(self, message: str, against: Sequence[Ballot]) -> None:
        super().__init__(message)
        self.against = tuple(against)


@dataclass(frozen=True, slots=True)
class Refitted:
    """The calibration with its new proof, and the rows that it routes wrongly."""

    calibration: Calibration
    wrong: tuple[Ballot, ...]


def prove_again(
    of: Calibration, known: Sequence[Ballot], strange: Sequence[Ballot], setting: Setting
) -> Refitted:
    """`of` for what `setting` says is known of the adapters now.

    Raises TargetBroken, and CalibrationError for votes of other classifiers or a file of an older version.
    """
    if setting.classifiers != of.order or tuple(sorted(setting.kinds)) != tuple(sorted(of.binding.adapters)):
        raise CalibrationError(
            "the calibration is for other classifiers or adapters: run `lora-router route calibrate` again"
        )
    check_votes([*known, *strange], of.order)
    goal = Goal(of.target, of.delta, of.ood_target)
    stops = [stage.stop for stage in of.stages]
    runs = _run(of, known, setting), _run(of, strange, setting)
    try:
        order = [(float(step["threshold"]), float(step["novelty_limit"])) for step in of.report["tested"]]
    except (KeyError, TypeError, ValueError):
        order = []
    if not order:
        raise CalibrationError(
            "the calibration does not say what it tested: run `lora-router route calibrate` again"
        )
    tested = [try_candidate(runs, stops, *pair, goal) for pair in order]
    try:
        step = last_before_failure(tested, goal)
    except Unproven as error:
        raise TargetBroken(error.message, wrong_rows(of, known, strange, runs)) from None
    counts = {**of.report.get("counts", {}), "proven_on": len(known), "ood_proven_on": len(strange)}
    found = renewed(replace(of, threshold=step.threshold, novelty_limit=step.novelty_limit), setting)
    report = {
        **of.report,
        "counts": counts,
        "proof": asdict(step),
        "tested": [asdict(one) for one in tested],
        "held_out": held_out_report(found, known, strange, setting.kinds),
    }
    found = replace(found, report=report)
    return Refitted(found, wrong_rows(found, known, strange, runs))


def renewed(of: Calibration, setting: Setting) -> Calibration:
    """Bound to what is known of the adapters now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(of, binding=setting.binding, profiles=setting.profiles, created=created)


def wrong_rows(
    of: Calibration, known: Sequence[Ballot], strange: Sequence[Ballot], runs: tuple[Run, Run]
) -> tuple[Ballot, ...]:
    """Those that the thresholds of `of` route to a wrong adapter, strange ones last."""
    stops = [stage.stop for stage in of.stages]
    found = []
    for rows, run in zip((known, strange), runs, strict=True):
        there = outcome_at(run, stops, of.threshold, of.novelty_limit)
        found += [ballot for ballot, bad in zip(rows, there.routed & ~there.right, strict=True) if bad]
    return tuple(found)


def _run(of: Calibration, rows: Sequence[Ballot], setting: Setting) -> Run:
    return run_cascade(rows, of.stages, of.scalers, of.axes, setting.kinds)
