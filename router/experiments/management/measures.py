"""What a plan measures, checked: its metrics, their caps and margins, and the labels that divide units.

And whether its smallest arm can have a verdict at all: what the sequences wait for, against its units.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from router.errors import FieldViolation, InvalidRequest
from router.experiments.model import (
    DENOMINATORS,
    MAX_SEGMENT_VALUES,
    MAX_SEGMENTS,
    NO_VALUE,
    OTHER_VALUE,
    WORD_FORM,
    Aggregate,
    ArmSpec,
    Kind,
    MetricSpec,
    Mode,
    SegmentSpec,
    Spec,
    is_word,
)
from router.experiments.report.source import metric_of
from router.experiments.stats import Guardrail, Metric, Plan

RULES = Plan()
MAX_GUARDRAILS = MAX_SECONDARY = 32
MAX_LABEL_BYTES = 64
ONE_OR_ZERO = (Aggregate.MAX, Aggregate.LAST)


def metric_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Primary metric, guardrails and secondary metrics, each by itself, and names that are there twice."""
    yield from _metric_problems(spec.primary, "primary")
    yield from _no_margin(spec.primary, "primary", "how much worse primary may be is the plan's own margin")
    if spec.mode is Mode.BANDIT and spec.primary.kind is Kind.RATIO:
        yield FieldViolation("primary.kind", "a bandit learns from a proportion or a mean, not from a ratio")
    for field, metrics, most in (
        ("guardrails", spec.guardrails, MAX_GUARDRAILS),
        ("secondary", spec.secondary, MAX_SECONDARY),
    ):
        if len(metrics) > most:
            yield FieldViolation(field, f"must be {most} or fewer, got {len(metrics)}")
    for i, metric in enumerate(spec.guardrails):
        yield from _metric_problems(metric, f"guardrails[{i}]")
        yield from _margin_problems(metric, f"guardrails[{i}]")
    for i, metric in enumerate(spec.secondary):
        yield from _metric_problems(metric, f"secondary[{i}]")
        yield from _no_margin(metric, f"secondary[{i}]", "secondary metrics are told and decide nothing")
    yield from _twice_named(spec)


def guardrails_that_hold(spec: Spec) -> tuple[Guardrail, ...]:
    """Those with which a design can be built and checked further."""
    return tuple(_guardrail(m) for m in spec.guardrails if not list(_margin_problems(m, "")))


def uncapped(metric: MetricSpec) -> Metric:
    """The metric of the statistics, without what is told of by itself: an empty name, a cap."""
    return metric_of(replace(metric, name=metric.name or "unnamed", cap=None, least=0.0))


def _metric_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if not is_word(metric.name):
        yield FieldViolation(f"{field}.name", f"must be {WORD_FORM}")
    elif metric.name in DENOMINATORS:
        yield FieldViolation(f"{field}.name", "is a denominator that the server counts, not an outcome")
    if metric.kind is Kind.PROPORTION and metric.aggregate not in ONE_OR_ZERO:
        text = f"a proportion has one 0 or 1 for each unit: max or last, not {metric.aggregate}"
        yield FieldViolation(f"{field}.aggregate", text)
    if metric.kind is Kind.RATIO:
        yield from _ratio_problems(metric, field)
    yield from cap_problems(metric, field)


def _ratio_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    if metric.aggregate is not Aggregate.SUM:
        text = f"a ratio is a sum over a sum, not a {metric.aggregate}"
        yield FieldViolation(f"{field}.aggregate", text)
    if metric.per not in DENOMINATORS and not is_word(metric.per):
        yield FieldViolation(f"{field}.per", f"must be responses, outcomes, or an outcome: {WORD_FORM}")
    elif metric.per == metric.name:
        yield FieldViolation(f"{field}.per", "must be another outcome: over itself a ratio is always 1")


def cap_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    """What is wrong with a cap and the least value; only a mean has them."""
    if metric.cap is None:
        if metric.least != 0:
            yield FieldViolation(f"{field}.floor", "counts only with a cap: set one, or clear this")
        return
    if metric.kind is not Kind.MEAN:
        why = "it is 0 or 1 anyway" if metric.kind is Kind.PROPORTION else "cap what it is made of"
        yield FieldViolation(f"{field}.cap", f"belongs to a mean, not to a {metric.kind.value}: {why}")
    elif not math.isfinite(metric.least):
        yield FieldViolation(f"{field}.floor", f"must be a finite number, got {metric.least:g}")
    elif not (math.isfinite(metric.cap) and metric.cap > metric.least):
        text = f"must be a finite number above {metric.least:g}, the least value, got {metric.cap:g}"
        yield FieldViolation(f"{field}.cap", text)


def _margin_problems(metric: MetricSpec, field: str) -> Iterator[FieldViolation]:
    try:
        _guardrail(metric)
    except InvalidRequest as error:
        yield from (FieldViolation(f"{field}.margin", v.description) for v in error.violations)


def _guardrail(metric: MetricSpec) -> Guardrail:
    return Guardrail(uncapped(metric), metric.margin, metric.relative)


def _no_margin(metric: MetricSpec, field: str, why: str) -> Iterator[FieldViolation]:
    if metric.margin or metric.relative:
        yield FieldViolation(f"{field}.margin", f"belongs to guardrails; {why}")


def _twice_named(spec: Spec) -> Iterator[FieldViolation]:
    """Secondary metrics have names of their own. Of guardrails the design tells."""
    said = {m.name: "a guardrail" for m in spec.guardrails} | {spec.primary.name: "the primary"}
    for i, metric in enumerate(spec.secondary):
        if metric.name in said:
            text = f"secondary metric named like {said[metric.name]}: {metric.name!r} is told there already"
            yield FieldViolation(f"secondary[{i}].name", text)
        said.setdefault(metric.name, "another secondary one")


def segment_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Labels by whose values the effect is told: few, distinct, and none that tells units apart."""
    if len(spec.segments) > MAX_SEGMENTS:
        text = f"must be {MAX_SEGMENTS} labels or fewer, got {len(spec.segments)}: each widens intervals"
        yield FieldViolation("segments", text)
    for label in _twice(s.label for s in spec.segments):
        yield FieldViolation("segments", f"the label {label!r} is there twice: name all its values at once")
    for i, segment in enumerate(spec.segments):
        field = f"segments[{i}]"
        if problem := _text_problem(segment.label):
            yield FieldViolation(f"{field}.label", problem)
        elif segment.label == spec.unit_label:
            text = f"{segment.label!r} is the label that units are read from: every unit would be its own"
            yield FieldViolation(f"{field}.label", text)
        yield from _value_problems(segment, field)


def _value_problems(segment: SegmentSpec, field: str) -> Iterator[FieldViolation]:
    if len(segment.values) > MAX_SEGMENT_VALUES:
        yield FieldViolation(
            f"{field}.values",
            f"{MAX_SEGMENT_VALUES} values are allowed, got {len(segment.values)}: name the ones that matter,"
            f" all others become {OTHER_VALUE!r}",
        )
    for value in _twice(segment.values):
        yield FieldViolation(f"{field}.values", f"{value!r} is there twice")
    for j, value in enumerate(segment.values):
        if value in (NO_VALUE, OTHER_VALUE):
            text = f"{value!r} stands for units that have none of the values: leave it out"
            yield FieldViolation(f"{field}.values[{j}]", text)
        elif problem := _text_problem(value):
            yield FieldViolation(f"{field}.values[{j}]", problem)


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _text_problem(text: str) -> str:
    """Why a label or its value cannot be kept; empty if it can."""
    if not text:
        return "must not be empty"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "must be valid UTF-8"
    if size > MAX_LABEL_BYTES:
        return f"must have at most {MAX_LABEL_BYTES} bytes, has {size}"
    return "must have no control characters" if any(unicodedata.category(c) == "Cc" for c in text) else ""


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
        ways = _ways_out(spec, arm, RULES.unbounded_units, open_ended)
        yield f"{_units_of_arm(spec, arm)}; {_needs_of_uncapped(open_ended)}: {ways}"
    least = max(spec.min_units, RULES.burn_in_units if any(m.covariate for m in deciding) else 0)
    if units < least:
        why = f"nothing is promoted before {least:,} in each arm"
        yield f"{_units_of_arm(spec, arm)}; {why}: {_ways_out(spec, arm, least)}"
    for metric in deciding:
        rate = (rates or {}).get(metric.name)
        if metric.kind is Kind.PROPORTION and rate is not None:
            yield from _too_few_events(spec, metric, rate)


def _too_few_events(spec: Spec, metric: MetricSpec, rate: float) -> Iterator[str]:
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


def _units_of_arm(spec: Spec, arm: ArmSpec) -> str:
    units = math.floor(spec.planned_units * arm.weight)
    return f"{arm.name} gets {100 * arm.weight:.3g} % of {spec.planned_units:,} planned units, {units:,}"


def _needs_of_uncapped(metrics: list[MetricSpec]) -> str:
    names = " and ".join(m.name for m in metrics)
    has, needs = ("has", "needs") if len(metrics) == 1 else ("have", "need")
    return f"{names} {has} no cap and {needs} {RULES.unbounded_units} in each arm"


def _ways_out(spec: Spec, arm: ArmSpec, need: int, metrics: list[MetricSpec] | None = None) -> str:
    """What to do about it."""
    ways = [f"plan {math.ceil(need / arm.weight - 1e-9):,} units"] if arm.weight > 0 else []
    if arm.weight < 1 / len(spec.arms) - 1e-9:
        ways.append("give it more weight")
    if metrics and all(m.kind is Kind.MEAN for m in metrics):
        ways.append("set a cap")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else "".join(ways)
