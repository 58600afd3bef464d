"""Whether a plan's smallest arm can have a verdict at all: what the sequences wait for, against its units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from router.experiments.model import ArmSpec, Kind, MetricSpec, Mode, Spec
from router.experiments.stats import Plan

RULES = Plan()


def out_of_reach(spec: Spec, rates: Mapping[str, float] | None = None) -> Iterator[str]:
    """What the planned units of the smallest arm do not suffice for, with numbers. `rates` of proportions in
    control, by name, where they are known."""
    if spec.mode is not Mode.SPLIT or not spec.arms:
        return
    arm = min(reversed(spec.arms), key=lambda arm: arm.weight)
    units = math.floor(spec.planned_units * arm.weight)
    deciding = (spec.primary, *spec.guardrails)
    open_ended = [m for m in deciding if m.kind is Kind.RATIO or (m.kind is Kind.MEAN and m.cap is None)]
    if open_ended and units < RULES.unbounded_units:
        ways = _ways(spec, arm, RULES.unbounded_units, open_ended)
        yield f"{_gets(spec, arm)}; {_uncapped(open_ended)}: {ways}"
    least = max(spec.min_units, RULES.burn_in_units if any(m.covariate for m in deciding) else 0)
    if units < least:
        why = f"nothing is promoted before {least:,} in each arm"
        yield f"{_gets(spec, arm)}; {why}: {_ways(spec, arm, least)}"
    for metric in deciding:
        rate = (rates or {}).get(metric.name)
        if metric.kind is Kind.PROPORTION and rate is not None:
            yield from _events(spec, metric, rate)


def _events(spec: Spec, metric: MetricSpec, rate: float) -> Iterator[str]:
    """Before so many ones and zeros, only the wide exact interval is there."""
    weights = {arm.name: arm.weight for arm in spec.arms}
    control = weights.pop(spec.control, 0.0)
    if not weights or control <= 0:
        return
    name = min(weights, key=lambda arm: weights[arm])
    both, rarer = control + weights[name], min(rate, 1 - rate)
    need = events_needed(min(control, weights[name]) / both)
    expected = spec.planned_units * both * rarer
    if expected < need:
        which = "ones" if rate <= 0.5 else "zeros"
        more = f": plan {math.ceil(need / rarer / both - 1e-6):,} units" if rarer > 0 else ""
        yield (
            f"{metric.name} is {rate:.6g} in control: {spec.planned_units:,} planned units bring about"
            f" {expected:.3g} {which} to {name} and control together, and {need:g} are needed before its"
            f" interval is narrow{more}"
        )


def events_needed(share: float) -> int:
    """Ones, and as many zeros, of a proportion in both arms, where the smaller has this share of them."""
    return math.ceil(max(RULES.burn_in_events, RULES.arm_events / share) - 1e-9)


def _gets(spec: Spec, arm: ArmSpec) -> str:
    units = math.floor(spec.planned_units * arm.weight)
    return f"{arm.name} gets {100 * arm.weight:.3g} % of {spec.planned_units:,} planned units, {units:,}"


def _uncapped(metrics: list[MetricSpec]) -> str:
    names = " and ".join(m.name for m in metrics)
    has, needs = ("has", "needs") if len(metrics) == 1 else ("have", "need")
    return f"{names} {has} no cap and {needs} {RULES.unbounded_units} in each arm"


def _ways(spec: Spec, arm: ArmSpec, need: int, metrics: list[MetricSpec] | None = None) -> str:
    """What to do about it."""
    ways = [f"plan {math.ceil(need / arm.weight - 1e-9):,} units"] if arm.weight > 0 else []
    if arm.weight < 1 / len(spec.arms) - 1e-9:
        ways.append("give it more weight")
    if metrics and all(m.kind is Kind.MEAN for m in metrics):
        ways.append("set a cap")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else "".join(ways)
