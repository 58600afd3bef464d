"""Checks of a plan's route and arms."""

from __future__ import annotations

import math
from collections.abc import Iterator

from router.errors import FieldViolation
from router.experiments.management.known import Known, unknown
from router.experiments.model import ArmSpec, Mode, RouterVariant, Spec
from router.experiments.names import WORD_FORM, is_word

BASE = "base"
MAX_ARMS = 16


def route_problems(spec: Spec, known: Known) -> Iterator[FieldViolation]:
    """The route is an adapter that is there, the base, or empty in a router experiment."""
    if spec.route not in ("", BASE) and (problem := known.adapter_problem(spec.route)):
        yield FieldViolation("route", problem)
    if not spec.route and spec.mode is not Mode.SPLIT:
        yield FieldViolation("mode", "router experiments are a split: set no mode, or a route")


def arm_problems(spec: Spec, known: Known) -> Iterator[FieldViolation]:
    """Every arm has a name and what its kind of experiment needs. Weights are the allocation's matter."""
    if len(spec.arms) > MAX_ARMS:
        yield FieldViolation("arms", f"must be {MAX_ARMS} or fewer, got {len(spec.arms)}")
    for i, arm in enumerate(spec.arms):
        field = f"arms[{i}]"
        if arm.name and not is_word(arm.name):
            yield FieldViolation(f"{field}.name", f"must be {WORD_FORM}")
        if arm.adapter is not None and arm.router is not None:
            yield FieldViolation(field, "is either an adapter version or a router configuration, not both")
        elif spec.route:
            yield from _adapter_arm(arm, field, known)
        else:
            yield from _router_arm(spec, arm, field, known)


def _adapter_arm(arm: ArmSpec, field: str, known: Known) -> Iterator[FieldViolation]:
    if arm.router is not None:
        text = "belongs to a router experiment, which has no route: clear the one or the other"
        yield FieldViolation(f"{field}.router", text)
    if arm.adapter and (problem := known.adapter_problem(arm.adapter.name, arm.adapter.version)):
        yield FieldViolation(f"{field}.adapter", problem)


def _router_arm(spec: Spec, arm: ArmSpec, field: str, known: Known) -> Iterator[FieldViolation]:
    if arm.adapter is not None:
        text = "needs a route: without one this is a router experiment, whose arms are router configurations"
        yield FieldViolation(f"{field}.adapter", text)
    elif arm.router is None and arm.name != spec.control:
        text = "must be set: without a route these are routers, and only control may be the server's own"
        yield FieldViolation(f"{field}.router", text)
    elif arm.router is not None:
        yield from _variant(arm.router, f"{field}.router", known)


def _variant(variant: RouterVariant, field: str, known: Known) -> Iterator[FieldViolation]:
    threshold = variant.threshold
    if threshold is not None and not (math.isfinite(threshold) and 0 <= threshold <= 1):
        yield FieldViolation(f"{field}.threshold", f"must be within 0 and 1, got {threshold}")
    if variant.classifiers is not None and known.classifiers is not None:
        names = known.classifiers()
        for name in variant.classifiers:
            if name not in names:
                yield FieldViolation(f"{field}.classifiers", unknown(name, names))
