"""Metrics that arms take from each other: latency, where all arms wait in one queue of one device.

In a split the requests of a slow arm hold up those of the other, so both wait alike, and what a roll-out does
to the wait is not to be seen. A difference in total time is real, since it is the arm's own part, but a
roll-out has more of it. So such a metric may stop an arm, and promotes none.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.errors import FieldViolation
from router.experiments.model import Spec
from router.experiments.times import TIMES, is_meant_as_share

WORDS = "both arms share one queue, so this compares little"


def shares_queue(metric: str) -> bool:
    """Whether arms share what a metric measures."""
    return metric in TIMES or is_meant_as_share(metric)


def shared_primary(spec: Spec, before: Spec | None = None) -> Iterator[FieldViolation]:
    """Why a new plan is refused; one that was kept `before` with the same metric and mode may stay."""
    if not shares_queue(spec.primary.name) or spec.equal_arms:
        return
    if before is None or (before.primary.name, before.mode) != (spec.primary.name, spec.mode):
        text = (
            f"{spec.primary.name} cannot decide here: requests of all arms wait in one queue, so a slower arm"
            " slows the others just as much. Make it a guardrail, which stops an arm that is slow by itself"
        )
        yield FieldViolation("primary.name", text)


def shared_warnings(spec: Spec) -> Iterator[str]:
    """What a plan with such a metric deserves a second look for."""
    if shares_queue(spec.primary.name) and not spec.equal_arms:
        yield f"primary metric {spec.primary.name}: {WORDS}"
    for rail in spec.guardrails:
        if rail.name in TIMES and shares_queue(rail.name):
            yield (
                f"guardrail {rail.name}: {WORDS} to learn what a roll-out does; here it stops an arm that is"
                " slow by itself"
            )
