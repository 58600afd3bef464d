"""Checks of a plan's metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from router.errors import FieldViolation, InvalidRequest
from router.experiments.kind import Kind
from router.experiments.model import Aggregate, MetricSpec, Mode, Spec
from router.experiments.names import DENOMINATORS, WORD_FORM, is_word
from router.experiments.report.designed import metric_of
from router.experiments.stats import Guardrail

MAX_GUARDRAILS = 32
ONE_OR_ZERO = (Aggregate.MAX, Aggregate.LAST)


def metric_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Primary metric and guardrails, each by itself."""
    yield from _metric(spec.primary, "primary")
    if spec.primary.margin or spec.primary.relative:
        text = "belongs to guardrails; how much worse primary may be is the experiment's own margin"
        yield FieldViolation("primary.margin", text)
    if spec.mode is Mode.BANDIT and spec.primary.kind is Kind.RATIO:
        yield FieldViolation("primary.kind", "a bandit learns from a proportion or a mean, not from a ratio")
    if len(spec.guardrails) > MAX_GUARDRAILS:
        text = f"must be {MAX_GUARDRAILS} or fewer, got {len(spec.guardrails)}"
        yield FieldViolation("guardrails", text)
    for i, metric in enumerate(spec.guardrails):
        yield from _metric(metric, f"guardrails[{i}]")
        yield from _margin(metric, f"guardrails[{i}]")


def guardrails_that_hold(spec: Spec) -> tuple[Guardrail, ...]:
    """Those with which a design can be built and checked further."""
    return tuple(_guardrail(m) for m in spec.guardrails if not list(_margin(m, "")))


def _metric(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if not is_word(metric.name):
        yield FieldViolation(f"{field}.name", f"must be {WORD_FORM}")
    elif metric.name in DENOMINATORS:
        yield FieldViolation(f"{field}.name", "is a denominator that the server counts, not an outcome")
    if metric.kind is Kind.PROPORTION and metric.aggregate not in ONE_OR_ZERO:
        text = f"a proportion has one 0 or 1 for each unit: max or last, not {metric.aggregate}"
        yield FieldViolation(f"{field}.aggregate", text)
    if metric.kind is Kind.RATIO:
        yield from _ratio(metric, field)


def _ratio(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if metric.aggregate is not Aggregate.SUM:
        text = f"a ratio is a sum over a sum, not a {metric.aggregate}"
        yield FieldViolation(f"{field}.aggregate", text)
    if metric.per not in DENOMINATORS and not is_word(metric.per):
        yield FieldViolation(f"{field}.per", f"must be responses, outcomes, or an outcome: {WORD_FORM}")
    elif metric.per == metric.name:
        yield FieldViolation(f"{field}.per", "must be another outcome: over itself a ratio is always 1")


def _margin(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    try:
        _guardrail(metric)
    except InvalidRequest as error:
        yield from (FieldViolation(f"{field}.margin", v.description) for v in error.violations)


def _guardrail(metric: MetricSpec) -> Guardrail:
    named = replace(metric, name=metric.name or "unnamed")  # an empty name is told of elsewhere
    return Guardrail(metric_of(named), metric.margin, metric.relative)
