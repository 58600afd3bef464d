"""How much of an experiment has had time to show an outcome."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.experiments.stats.moments import invalid


@dataclass(frozen=True, slots=True)
class Maturity:
    """Exposed units whose outcome window is over, among all exposed units."""

    matured: int
    exposed: int

    @property
    def share(self) -> float:
        """Matured share; 0 where nothing was exposed."""
        return self.matured / self.exposed if self.exposed else 0.0


def maturity(exposures: Iterable[tuple[float, int]], now: float, window: float) -> Maturity:
    """From (end of a time bucket, units first exposed in it), all times in seconds.

    A bucket is mature when even its last unit's window is over.
    """
    if not window >= 0:
        raise invalid("window", f"must be 0 seconds or more, got {window}")
    matured = exposed = 0
    for end, units in exposures:
        exposed += units
        matured += units if end + window <= now else 0
    return Maturity(matured, exposed)
