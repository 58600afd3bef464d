"""The effect by segment of units, without fishing: corrected intervals, and a test whether effects differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from router.experiments.stats.compare import Arms, Comparison, Plan, compare, p_of
from router.experiments.stats.moments import Metric, Moments, invalid
from router.experiments.stats.sequences import two_sided


@dataclass(frozen=True, slots=True)
class Segmented:
    """Effects by segment; their intervals hold all at once, at any look.

    `p` is that the effect differs between segments at all: only where it is small does a segment's own effect
    mean more than the effect of everybody.
    """

    effects: Mapping[str, Comparison]
    p: float

    def differ(self, alpha: float) -> bool:
        """Whether segments are shown to differ."""
        return self.p <= alpha


def corrected(plan: Plan, many: int) -> Plan:
    """The plan of one of `many` comparisons whose intervals are to hold together (Bonferroni)."""
    if many < 1:
        raise invalid("many", f"must be 1 or more, got {many}")
    return replace(plan, alpha=plan.alpha / many)


def segmented(
    metric: Metric, arms: Mapping[str, tuple[Moments, Moments]], plan: Plan, many: int = 1
) -> Segmented:
    """From each segment's (control, treatment), two units or more in each; `many` such tables are read
    together (treatments times labels).

    Each segment is tested against all others together, difference of differences, Bonferroni over segments.
    """
    found = {name: compare(metric, *both, corrected(plan, many * len(arms))) for name, both in arms.items()}
    if len(arms) < 2:
        return Segmented(found, 1.0)
    least = min(_differs(metric, arms, name, plan) for name in arms)
    return Segmented(found, min(1.0, least * len(arms) * many))


def _differs(metric: Metric, arms: Mapping[str, tuple[Moments, Moments]], name: str, plan: Plan) -> float:
    """p-value of one segment's effect against that of the rest."""
    here = Arms(metric, *arms[name], plan)
    others = [both for other, both in arms.items() if other != name]
    control, treatment = (_merged([both[i] for both in others]) for i in (0, 1))
    rest = Arms(metric, control, treatment, plan)
    if not (bool(here.ready) and bool(rest.ready)):
        return 1.0
    apart = float(here.difference()) - float(rest.difference())
    variance = float(here.variance()) + float(rest.variance())
    n = float(here.n + rest.n)
    return p_of(two_sided(apart / math.sqrt(variance), plan.gain(n, plan.alpha)))


def _merged(parts: Sequence[Moments]) -> Moments:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole
