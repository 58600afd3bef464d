"""Results of the statistics as the plain values of a report."""

from __future__ import annotations

from dataclasses import replace

from router.experiments.report.model import Length, Measured, Pairs, Ruling
from router.experiments.stats import Comparison, Guarded, LengthAdjusted, Paired
from router.experiments.verdict import Verdict


def measured(found: Comparison, higher_is_better: bool, length: Length | None = None) -> Measured:
    """A comparison."""
    relative = found.relative_interval
    return Measured(
        metric=found.metric,
        units=found.units,
        values=found.values,
        effect=found.effect,
        low=found.interval.low,
        high=found.interval.high,
        p=found.p,
        method=found.method.value,
        higher_is_better=higher_is_better,
        relative=found.relative if relative else None,
        relative_low=relative.low if relative else None,
        relative_high=relative.high if relative else None,
        length=length,
    )


def guarded(found: Guarded) -> Measured:
    """A guardrail: p is the one of the state, or the smaller one while it is open."""
    rail = found.guardrail
    return replace(
        measured(found.comparison, rail.metric.higher_is_better),
        p=min(found.p_beyond, found.p_within),
        state=found.state.value,
        margin=rail.margin,
        margin_relative=rail.relative,
    )


def length(found: LengthAdjusted) -> Length:
    """The effect at equal length."""
    return Length(found.adjusted, found.half, *found.lengths)


def pairs(found: Paired) -> Pairs:
    """Pairs of a shadow arm."""
    return Pairs(found.wins, found.losses, found.ties, found.share, found.low, found.high, found.p)


def ruling(found: Verdict) -> Ruling:
    """A verdict."""
    return Ruling(found.decision.value, found.rule, found.text)
