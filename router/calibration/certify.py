"""Thresholds with a guarantee, by split fixed-sequence testing.

Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test" (2021): rows that were used for fitting order the
candidate thresholds; then each is tested on rows that were not, one after the other, every one at full level
`delta`, until one fails. As the order was fixed before and nothing is tested after the first failure, the
chance that the threshold taken errs more than `target` is at most `delta`, however many there are. A
candidate passes if the Clopper-Pearson bound of the error among routed requests is within `target` and,
where strange requests were given, the bound of the share of them that is routed is within `ood_target`: it
has to pass both, so that no part of `delta` is spent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.calibration.bounds import upper
from router.calibration.cascade import Run, outcome
from router.calibration.errors import CalibrationError
from router.calibration.goal import Goal, enough
from router.calibration.ordering import ordered


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate and what it came to on the rows it was tested on."""

    threshold: float
    novelty_limit: float
    routed: int
    errors: int
    error_bound: float
    strange_routed: int
    strange_bound: float


def certify(
    fitting: tuple[Run, Run], testing: tuple[Run, Run], stops: Sequence[float], goal: Goal
) -> tuple[Step, tuple[Step, ...]]:
    """The last candidate that passes, and all that were tested.

    `fitting` and `testing` are (known, strange) rows. Raises CalibrationError if there are too few rows to
    prove anything, or if not even the first candidate passes.
    """
    rows = (len(testing[0].confidence), len(testing[1].confidence))
    enough(*rows, goal)
    tested: list[Step] = []
    for threshold, limit in ordered(fitting, rows, stops, goal):
        tested.append(measure(testing, stops, threshold, limit, goal))
        if not passes(tested[-1], goal):
            break
    passed = [step for step in tested if passes(step, goal)]
    if not passed:
        raise CalibrationError(_refusal(tested[0], goal))
    return passed[-1], tuple(tested)


def measure(
    testing: tuple[Run, Run], stops: Sequence[float], threshold: float, limit: float, goal: Goal
) -> Step:
    """A candidate on the rows for testing."""
    known, strange = (outcome(run, stops, threshold, limit) for run in testing)
    return Step(
        threshold,
        limit,
        known.count,
        known.errors,
        upper(known.errors, known.count, goal.delta),
        strange.count,
        upper(strange.count, len(strange.routed), goal.delta) if len(strange.routed) else 0.0,
    )


def passes(step: Step, goal: Goal) -> bool:
    """Both bounds within their targets."""
    return step.error_bound <= goal.target and step.strange_bound <= goal.ood_target


def _refusal(step: Step, goal: Goal) -> str:
    if step.error_bound > goal.target:
        return (
            f"no threshold keeps the error under {goal.target:.0%}: at the safest, {step.errors} of "
            f"{step.routed} requests went wrong, which proves {step.error_bound:.1%} only; write more varied "
            "[routing] examples for the adapters that are confused (`lora-router route evaluate` shows "
            "them), give more labelled requests, or a looser --target"
        )
    return (
        f"no threshold keeps out-of-distribution requests away: at the safest, {step.strange_routed} are "
        f"routed, which proves {step.strange_bound:.1%} only, not {goal.ood_target:.0%}; give "
        "negative_examples to the adapters that take them, more requests with --ood, or a looser "
        "--ood-target"
    )
