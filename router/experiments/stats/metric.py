"""What is measured, and which columns of `Moments` it takes."""

from __future__ import annotations

from dataclasses import dataclass

from router.experiments.model import Kind
from router.experiments.stats.moments import invalid


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. Columns: the value (for a ratio numerator, denominator), then the covariate likewise.

    The covariate (CUPED) is the same quantity of the same unit from before the experiment.
    """

    name: str
    kind: Kind
    higher_is_better: bool = True
    covariate: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise invalid("metric.name", "must not be empty")

    @property
    def columns(self) -> int:
        """How many columns its `Moments` have."""
        return (2 if self.kind is Kind.RATIO else 1) * (2 if self.covariate else 1)

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1


__all__ = ["Kind", "Metric"]
