"""What a calibration has to prove, and how many requests that takes."""

from __future__ import annotations

from dataclasses import dataclass

from router.calibration.bounds import needed
from router.calibration.errors import CalibrationError


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


def enough(known: int, strange: int, goal: Goal) -> None:
    """Raises CalibrationError where even a faultless router could not prove the goal on so many rows."""
    least = needed(goal.target, goal.delta)
    if known < least:
        raise CalibrationError(
            f"{known} requests to test on prove nothing: an error under {goal.target:.0%} at "
            f"{1 - goal.delta:.0%} confidence needs at least {least} that are all routed right, and a third "
            f"of the labelled requests is for fitting: give {_whole(least)} or more, or a looser --target"
        )
    least = needed(goal.ood_target, goal.delta)
    if 0 < strange < least:
        raise CalibrationError(
            f"{strange} out-of-distribution requests to test on prove nothing: a share under "
            f"{goal.ood_target:.0%} at {1 - goal.delta:.0%} confidence needs at least {least} that all stay "
            f"with the base, and a third is for fitting: give {_whole(least)} or more, or a looser "
            "--ood-target"
        )


def _whole(tested: int) -> int:
    """Requests of which two thirds are so many."""
    return -(-tested * 3 // 2)
