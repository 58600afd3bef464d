"""What is fixed before an experiment starts, and what its guarantees rest on."""

from __future__ import annotations

from dataclasses import dataclass

from router.experiments.stats.moments import invalid


@dataclass(frozen=True, slots=True)
class Plan:
    """Error rate, size and burn-in of a comparison of two arms.

    `units` is the planned number of both arms together: sequences are tightest there, and valid at any.
    Approximate sequences begin at `burn_in_units` in each arm; for a proportion also `burn_in_events`
    ones and as many zeros in both. Until then proportions have the exact sequence, which has
    `exact_share` of alpha to itself.
    """

    alpha: float = 0.05
    units: int = 5000
    burn_in_units: int = 100
    burn_in_events: int = 10
    exact_share: float = 0.2

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("exact_share", self.exact_share)):
            if not 0 < value < 1:
                raise invalid(f"plan.{name}", f"must be above 0 and below 1, got {value}")
        if self.alpha > 0.2:
            raise invalid("plan.alpha", f"above 0.2 nothing is shown; 0.05 is usual, got {self.alpha}")
        if self.units < 2 * self.burn_in_units:
            raise invalid("plan.units", f"must be twice burn_in_units or more, got {self.units}")
        if self.burn_in_units < 20 or self.burn_in_events < 1:
            raise invalid("plan.burn_in_units", "must be 20 or more, and burn_in_events 1 or more")
