"""Guardrails: is an arm shown to be worse than control by more than a margin, or shown not to be?

Two one-sided sequences, each with the whole alpha: they answer different questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from router.experiments.stats.compare import Arms, Comparison, Plan, compared, p_of
from router.experiments.stats.moments import Metric, Moments, invalid
from router.experiments.stats.sequences import Line


class State(StrEnum):
    """What is shown of a guardrail."""

    BEYOND = "beyond"
    """Worse by more than the margin."""
    WITHIN = "within"
    """Not worse by as much as the margin."""
    OPEN = "open"
    """Neither is shown yet."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse by more than `margin`: absolute, or a share of control's value."""

    metric: Metric
    margin: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not (self.margin > 0 and math.isfinite(self.margin)):
            raise invalid(
                f"guardrails[{self.metric.name}].margin",
                f"must be above 0, got {self.margin}: with 0 an arm that is merely equal is never promoted",
            )
        if self.relative and self.margin >= 1:
            raise invalid(f"guardrails[{self.metric.name}].margin", "a relative margin must be below 1")

    @property
    def line(self) -> Line:
        """Where the metric is worse by just the margin. Worse is more, or less, as the metric says."""
        worse = -self.metric.sign * self.margin
        return Line(scale=1 + worse) if self.relative else Line(offset=worse)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guardrail at this look: the comparison, how sure `beyond` and `within` are, and what is shown."""

    guardrail: Guardrail
    comparison: Comparison
    p_beyond: float
    p_within: float
    state: State


def guard(guardrail: Guardrail, control: Moments, treatment: Moments, plan: Plan) -> Guarded:
    """The guardrail at this look. The p-values are one-sided and valid at any look."""
    metric = guardrail.metric
    arms = Arms(metric, control, treatment, plan)
    beyond, within = (p_of(arms.evidence(guardrail.line, side)) for side in (-metric.sign, metric.sign))
    state = State.OPEN
    if beyond <= plan.alpha:
        state = State.BEYOND
    elif within <= plan.alpha:
        state = State.WITHIN
    return Guarded(guardrail, compared(arms), beyond, within, state)
