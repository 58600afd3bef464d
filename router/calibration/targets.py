"""The targets of a calibration: its candidates with the results of their tests, and which one is taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.calibration.model import Calibration, CalibrationError


class Unproven(CalibrationError):
    """The rows do not prove the target: too few, or too many of them go wrong."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Most error among routed requests, most share of strange ones routed, each at confidence 1 - delta."""

    target: float = 0.05
    delta: float = 0.05
    ood_target: float = 0.05

    def __post_init__(self) -> None:
        for name in ("target", "delta", "ood_target"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise CalibrationError(
                    f"--{name.replace('_', '-')} is {value}: it must lie between 0 and 1, such as 0.05"
                )


@dataclass(frozen=True, slots=True)
class Tested:
    """One candidate and its results on the rows that it was tested on."""

    threshold: float
    novelty_limit: float
    routed: int
    errors: int
    error_bound: float
    strange_routed: int
    strange_bound: float


def last_before_failure(tested: Sequence[Tested], goal: Goal) -> Tested:
    """What fixed-sequence testing takes. Raises Unproven if not even the first passes."""
    passed = list(itertools.takewhile(lambda step: passes(step, goal), tested))
    if not passed:
        raise Unproven(_refusal(tested[0], goal))
    return passed[-1]


def aimed(of: Calibration, target: float | None, ood_target: float | None) -> Calibration:
    """The same calibration for other targets (None: its own): the order of its candidates was fixed before
    they were tested, whatever the target, so that each target may take its own last one.

    The promise is for a target that was chosen without a look at what each would give. Raises
    CalibrationError if the file has no results of its candidates, or if none passes.
    """
    goal = Goal(
        of.target if target is None else target, of.delta, of.ood_target if ood_target is None else ood_target
    )
    if goal == Goal(of.target, of.delta, of.ood_target):
        return of
    try:
        tested = [Tested(**step) for step in of.report["tested"]]
        step = last_before_failure(tested, goal)
    except (KeyError, TypeError, IndexError):
        raise CalibrationError(
            "the calibration says nothing of other targets: run `lora-router route calibrate` again"
        ) from None
    return replace(
        of,
        threshold=step.threshold,
        novelty_limit=step.novelty_limit,
        target=goal.target,
        ood_target=goal.ood_target,
    )


def passes(step: Tested, goal: Goal) -> bool:
    """Both bounds within their targets."""
    return step.error_bound <= goal.target and step.strange_bound <= goal.ood_target


def _refusal(step: Tested, goal: Goal) -> str:
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
