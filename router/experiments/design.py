"""What an experiment is to decide, by which rules: fixed before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from router.errors import FieldViolation, InvalidRequest
from router.experiments.stats import Guardrail, Metric, Plan


@dataclass(frozen=True)
class Design:
    """Primary metric, guardrails and thresholds. Raises InvalidRequest naming every wrong field.

    `weights` by arm, control included. `margin` is how much worse the primary metric may be for an arm to
    be promoted: 0 asks it to be better. `plan.units` counts all arms. `min_units` in each arm and
    `min_matured`, a share of exposures, are needed to promote, not to stop for harm.
    """

    control: str
    weights: Mapping[str, float]
    primary: Metric
    guardrails: tuple[Guardrail, ...] = ()
    margin: float = 0.0
    plan: Plan = field(default_factory=Plan)
    min_units: int = 100
    min_matured: float = 0.8

    def __post_init__(self) -> None:
        if found := list(self._violations()):
            raise InvalidRequest(found)

    @property
    def treatments(self) -> tuple[str, ...]:
        """All arms but control."""
        return tuple(arm for arm in self.weights if arm != self.control)

    def plan_for(self, arm: str) -> Plan:
        """The plan of one arm against control: with its share of the planned units."""
        share = self.weights[self.control] + self.weights[arm]
        units = max(2 * self.plan.burn_in_units, round(self.plan.units * share))
        return replace(self.plan, units=units)

    def _violations(self) -> list[FieldViolation]:
        found = []
        if self.control not in self.weights:
            found.append(FieldViolation("control", f"{self.control!r} is none of the arms"))
        if len(self.weights) < 2:
            found.append(FieldViolation("weights", "an experiment needs two arms or more"))
        positive = all(w > 0 for w in self.weights.values())
        if not positive or not math.isclose(math.fsum(self.weights.values()), 1, abs_tol=1e-9):
            found.append(FieldViolation("weights", "must be above 0 and sum to 1"))
        names = [self.primary.name, *(g.metric.name for g in self.guardrails)]
        if len(set(names)) < len(names):
            found.append(FieldViolation("guardrails", "every metric may be named once"))
        if not (self.margin >= 0 and math.isfinite(self.margin)):
            found.append(FieldViolation("margin", f"must be 0 or above, got {self.margin}"))
        if self.min_units < 2:
            found.append(FieldViolation("min_units", f"must be 2 or more, got {self.min_units}"))
        if not 0 <= self.min_matured <= 1:
            found.append(FieldViolation("min_matured", f"must be within 0 and 1, got {self.min_matured}"))
        return found
