"""Everything that is wrong with a plan, found at once.

Weights, shares and thresholds are checked by `Allocation`, `Design` and `Plan`, under the resource's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from router.errors import FieldViolation, InvalidRequest
from router.experiments.assignment import Allocation, Arm, Salts
from router.experiments.design import Design
from router.experiments.management.arms import arm_problems, route_problems
from router.experiments.management.known import Known, unknown
from router.experiments.management.metrics import guardrails_that_hold, metric_problems
from router.experiments.model import Mode, Spec
from router.experiments.names import id_problem
from router.experiments.report.designed import metric_of
from router.experiments.stats import Plan

YEAR = 365 * 86_400.0
WHOLE = (0.0, 1.0)
TEXTS = {"hypothesis": 4096, "unit": 64, "unit_label": 64}  # most bytes


def plan_problems(spec: Spec, known: Known) -> list[FieldViolation]:
    """Fields by their names in the resource; empty if the plan can be kept and started."""
    return [
        *_texts(spec),
        *route_problems(spec, known),
        *arm_problems(spec, known),
        *_allocation(spec),
        *metric_problems(spec),
        *_design(spec),
        *_times(spec),
        *_mode(spec, known),
    ]


def check_plan(spec: Spec, known: Known) -> None:
    """Raise InvalidRequest with all of `plan_problems`, if there are any."""
    if found := plan_problems(spec, known):
        raise InvalidRequest(found)


def _texts(spec: Spec) -> Iterator[FieldViolation]:
    for field, most in TEXTS.items():
        if len(getattr(spec, field).encode()) > most:
            yield FieldViolation(field, f"must have at most {most} bytes")
    if spec.namespace and (problem := id_problem(spec.namespace)):
        yield FieldViolation("namespace", problem)
    if spec.slot != WHOLE and not spec.namespace:
        yield FieldViolation("namespace", "must be set: slot_start and slot_end are parts of a namespace")


def _allocation(spec: Spec) -> Iterator[FieldViolation]:
    arms = tuple(Arm(arm.name, arm.weight) for arm in spec.arms)
    salts = Salts("enrolment", "variant", namespace="namespace")
    names = {"slot": "slot_end"}
    return _found(lambda: Allocation(salts, arms, spec.enrolment, spec.slot), names)


def _design(spec: Spec) -> Iterator[FieldViolation]:
    yield from _found(lambda: Plan(alpha=spec.alpha), {"plan.alpha": "alpha"})
    yield from _found(lambda: Plan(units=spec.planned_units), {"plan.units": "planned_units"})
    primary = metric_of(replace(spec.primary, name=spec.primary.name or "unnamed"))
    weights = {arm.name: arm.weight for arm in spec.arms}

    def build() -> Design:
        rails = guardrails_that_hold(spec)
        return Design(
            spec.control,
            weights,
            primary,
            rails,
            spec.margin,
            min_units=spec.min_units,
            min_matured=spec.min_matured,
        )

    yield from (v for v in _found(build, {}) if v.field != "weights")  # the allocation told of them


def _times(spec: Spec) -> Iterator[FieldViolation]:
    for field in ("window", "epoch"):
        seconds = getattr(spec, field)
        if not (math.isfinite(seconds) and 1 <= seconds <= YEAR):
            yield FieldViolation(field, f"must be between a second and a year, got {seconds:g} s")


def _mode(spec: Spec, known: Known) -> Iterator[FieldViolation]:
    if not 0 < spec.shadow_share <= 1:
        text = f"must be above 0 and at most 1, got {spec.shadow_share:g}"
        yield FieldViolation("shadow_share", text)
    if spec.mode is Mode.SHADOW and known.judges is not None and spec.judge not in known.judges():
        yield FieldViolation("judge", unknown(spec.judge, known.judges()))
    if spec.mode is Mode.BANDIT:
        most = 1 / max(len(spec.arms), 1)
        if not 0 < spec.floor <= most:
            text = f"must be above 0 and at most {most:g}, the equal share of an arm, got {spec.floor:g}"
            yield FieldViolation("floor", text)


def _found(build: Callable[[], object], names: Mapping[str, str]) -> Iterator[FieldViolation]:
    """What a constructor refuses."""
    try:
        build()
    except InvalidRequest as error:
        for v in error.violations:
            yield FieldViolation(names.get(v.field, v.field), v.description)
