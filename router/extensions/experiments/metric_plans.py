"""Metrics of a plan: what is wrong with each, and names that are there twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.completeness import completeness_problems
from router.extensions.experiments.model import DENOMINATORS, Kind, MetricSpec, Spec, listed
from router.extensions.experiments.report.source import metric_of
from router.extensions.experiments.stats.checks import Guardrail
from router.extensions.experiments.stats.moments import ComparedMetric
from router.extensions.experiments.times import (
    SHARE_EXAMPLE,
    SHARE_FORM,
    TIMES,
    is_meant_as_share,
    slow_share,
)

RARE = ("error", "cancelled", "length_stop")


def metric_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Primary metric, guardrails and secondary metrics, each by itself, and names that are there twice."""
    yield from _metric_problems(spec.primary, "primary")
    yield from _no_margin(spec.primary, "primary", "how much worse primary may be is the plan's own margin")
    for i, metric in enumerate(spec.guardrails):
        yield from _metric_problems(metric, f"guardrails[{i}]")
        yield from _margin_problems(metric, f"guardrails[{i}]")
    for i, metric in enumerate(spec.secondary):
        yield from _metric_problems(metric, f"secondary[{i}]")
        yield from _no_margin(metric, f"secondary[{i}]", "secondary metrics are reported and decide nothing")
    yield from _twice_named(spec)
    yield from completeness_problems(spec)


def guardrails_that_hold(spec: Spec) -> tuple[Guardrail, ...]:
    """Those with which a design can be built and checked further."""
    return tuple(_guardrail(m) for m in spec.guardrails if not list(_margin_problems(m, "")))


def uncapped(metric: MetricSpec) -> ComparedMetric:
    """The metric of the statistics, without what is reported by itself: an empty name, a cap."""
    return metric_of(replace(metric, name=metric.name or "unnamed", cap=None, least=0.0))


def _metric_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if metric.name in DENOMINATORS:
        yield FieldViolation(f"{field}.name", "is a denominator that the server counts, not an outcome")
    elif is_meant_as_share(metric.name):
        yield from _share_problems(metric, field)
    rules = metric.kind.rules
    if metric.combined not in rules.aggregates:
        text = f"a {metric.kind} is {rules.words}: {listed(rules.aggregates)}, not {metric.combined}"
        yield FieldViolation(f"{field}.aggregate", text)
    if rules.has_denominator:
        yield from _denominator_problems(metric, field)
    yield from cap_problems(metric, f"{field}.")


def _share_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    """What is wrong with a share of slow units, beside what may be wrong with any metric."""
    if slow_share(metric.name) is None:
        yield FieldViolation(f"{field}.name", f"must be {SHARE_FORM}, such as {SHARE_EXAMPLE}")
    if metric.kind is not Kind.PROPORTION:
        text = f"{metric.name} is a {Kind.PROPORTION}: 1 for a unit that had a slow answer, else 0"
        yield FieldViolation(f"{field}.kind", f"{text}; not a {metric.kind}")
    elif metric.combined is not Kind.PROPORTION.rules.usual:
        text = f"must be {Kind.PROPORTION.rules.usual}: one slow answer makes a unit 1"
        yield FieldViolation(f"{field}.aggregate", text)
    if metric.higher_is_better:
        yield FieldViolation(f"{field}.higher_is_better", f"must be false: more of {metric.name} is worse")
    if metric.covariate:
        yield FieldViolation(f"{field}.covariate", "a share of slow units has none: set it to false")


def _denominator_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if metric.per == metric.name:
        yield FieldViolation(f"{field}.per", "must be another outcome: over itself a ratio is always 1")


def cap_problems(metric: MetricSpec, within: str = "") -> Iterator[FieldViolation]:
    """What is wrong with a cap and the least value; only a mean has them."""
    if metric.cap is None:
        if metric.least != 0:
            yield FieldViolation(f"{within}least", "counts only with a cap: set one, or clear this")
        return
    if why := metric.kind.rules.uncappable:
        cappable = listed(f"a {k}" for k in Kind if not k.rules.uncappable)
        yield FieldViolation(f"{within}cap", f"belongs to {cappable}, not to a {metric.kind}: {why}")
    elif not math.isfinite(metric.least):
        yield FieldViolation(f"{within}least", f"must be a finite number, got {metric.least:g}")
    elif not (math.isfinite(metric.cap) and metric.cap > metric.least):
        text = f"must be a finite number above {metric.least:g}, the least value, got {metric.cap:g}"
        yield FieldViolation(f"{within}cap", text)


def _margin_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    try:
        _guardrail(metric)
    except InvalidRequest as error:
        yield from (FieldViolation(f"{field}.margin", v.description) for v in error.violations)


def _guardrail(metric: MetricSpec) -> Guardrail:
    return Guardrail(uncapped(metric), metric.margin, metric.relative, metric.improve)


def _no_margin(metric: MetricSpec, field: str, why: str) -> Iterator[FieldViolation]:
    if metric.margin or metric.relative:
        yield FieldViolation(f"{field}.margin", f"belongs to guardrails; {why}")
    if metric.improve:
        yield FieldViolation(f"{field}.improve", f"belongs to guardrails; {why}")


def _twice_named(spec: Spec) -> Iterator[FieldViolation]:
    """Secondary metrics have names of their own. The design checks those of guardrails."""
    taken = {m.name: "a guardrail" for m in spec.guardrails} | {spec.primary.name: "the primary"}
    for i, metric in enumerate(spec.secondary):
        if metric.name in taken:
            text = (
                f"secondary metric named like {taken[metric.name]}: {metric.name!r} is reported there already"
            )
            yield FieldViolation(f"secondary[{i}].name", text)
        taken.setdefault(metric.name, "another secondary one")


def metric_warnings(spec: Spec) -> Iterator[str]:
    """Guardrails that stop harm late, or that stand in the way of a promotion."""
    for rail in spec.guardrails:
        if rail.name in RARE and not rail.kind.rules.binary:
            yield (
                f"guardrail {rail.name} shows nothing while no answer has any, and then nothing is promoted: "
                "as a proportion, the share of units that had one, it is exact from the first unit"
            )
        if rail.name in TIMES and rail.kind is Kind.MEAN and rail.cap is None:
            yield (
                f"guardrail {rail.name} is a mean without a cap, and shows no harm before 750 units in each "
                f"arm: as the share of slow units, such as {rail.name}_over_4s, it does from the first unit"
            )
