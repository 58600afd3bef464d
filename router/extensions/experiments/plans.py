"""Plans: all that is wrong with one, what deserves a second look, and which may run side by side.

The model checks single fields, `UnitAllocation`, `ExperimentDesign` and `SequencePlan` weights, shares and
thresholds, `metric_plans` metrics. What fields say together and what the server has is checked here.
Warnings tell whether the smallest arm can have a verdict at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from router.errors import AdapterNotFound, FailedPrecondition, FieldViolation, InvalidRequest
from router.extensions.experiments.assignment import AssignmentSalts, UnitAllocation, WeightedArm
from router.extensions.experiments.completeness import shared_warnings
from router.extensions.experiments.metric_plans import (
    guardrails_that_hold,
    metric_problems,
    metric_warnings,
    uncapped,
)
from router.extensions.experiments.model import (
    BASE,
    ArmSpec,
    Experiment,
    Lifecycle,
    MetricSpec,
    Mode,
    Spec,
)
from router.extensions.experiments.plan_file import field_problems
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.verdict import ExperimentDesign
from router.types import AdapterInfo, AdapterRef

WHOLE = (0.0, 1.0)
HIDDEN = "another experiment that runs is in its way: choose another route, or a slot of its namespace"


class Resolve(Protocol):
    """As `Catalog.resolve`."""

    def __call__(self, name: str, version: str = "", /) -> AdapterInfo:
        """The version, or the default of `name`. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        ...


def all_seen(_: Experiment) -> bool:
    """Who may know of every experiment."""
    return True


@dataclass(frozen=True, slots=True)
class Known:
    """Asked anew for every plan. None: whatever is named is taken. `sees`: whether the author of the plan may
    know of another experiment."""

    resolve: Resolve
    sees: Callable[[Experiment], bool] = all_seen

    def adapter_problem(self, name: str, version: str = "") -> str:
        """Why no arm or route can be this adapter; empty if it can."""
        try:
            self.resolve(name, version)
        except AdapterNotFound as error:
            return f"{error.message}; ListAdapters shows what there is"
        except FailedPrecondition as error:
            return error.message
        return ""


def plan_problems(spec: Spec, known: Known) -> list[FieldViolation]:
    """Fields by their names in the resource; empty if the plan can be kept and started."""
    return [
        *field_problems(spec),
        *_slot(spec),
        *_route_problems(spec, known),
        *_arm_problems(spec, known),
        *_allocation(spec),
        *metric_problems(spec),
        *segment_problems(spec),
        *_design(spec),
        *_holdout(spec),
    ]


def _slot(spec: Spec) -> Iterator[FieldViolation]:
    if spec.slot != WHOLE and not spec.namespace:
        yield FieldViolation("namespace", "must be set: slot is a part of a namespace")


def _allocation(spec: Spec) -> Iterator[FieldViolation]:
    arms = tuple(WeightedArm(arm.name, arm.weight) for arm in spec.arms)
    salts = AssignmentSalts("enrolment", "variant", namespace="namespace")
    return _found(lambda: UnitAllocation(salts, arms, spec.enrolment, spec.slot), {})


def _design(spec: Spec) -> Iterator[FieldViolation]:
    yield from _found(lambda: SequencePlan(alpha=spec.alpha), {"plan.alpha": "alpha"})
    yield from _found(lambda: SequencePlan(units=spec.planned_units), {"plan.units": "planned_units"})
    primary = uncapped(spec.primary)
    weights = {arm.name: arm.weight for arm in spec.arms}

    def build() -> ExperimentDesign:
        rails = guardrails_that_hold(spec)
        return ExperimentDesign(
            spec.control,
            weights,
            primary,
            rails,
            spec.margin,
            min_units=spec.min_units,
            min_matured=spec.min_matured,
        )

    yield from (v for v in _found(build, {}) if v.field != "weights")  # the allocation has reported them


def _holdout(spec: Spec) -> Iterator[FieldViolation]:
    """It takes in everybody: nothing of its own decides who is in which arm."""
    if spec.mode is not Mode.HOLDOUT:
        return
    if len(spec.arms) != 2:
        text = f"of a holdout are two, the control being who is in no experiment, got {len(spec.arms)}"
        yield FieldViolation("arms", text)
    if spec.namespace or spec.slot != WHOLE:
        yield FieldViolation("namespace", "a holdout is of all units: clear namespace and slot")
    if spec.enrolment != 1:
        text = f"a holdout is of all units: must be 1 or unset, got {spec.enrolment:g}"
        yield FieldViolation("enrolment", text)


def _found(build: Callable[[], object], names: Mapping[str, str]) -> Iterator[FieldViolation]:
    """What a constructor refuses."""
    try:
        build()
    except InvalidRequest as error:
        for v in error.violations:
            yield FieldViolation(names.get(v.field, v.field), v.description)


def _route_problems(spec: Spec, known: Known) -> Iterator[FieldViolation]:
    """The route is an adapter that is there, the base, or empty in a holdout."""
    if spec.mode is Mode.HOLDOUT:
        if spec.route:
            yield FieldViolation("route", "a holdout is of all routes: leave it empty")
        return
    if not spec.route:
        yield FieldViolation("route", "must be set: adapters/NAME, or base")
    elif spec.route != BASE and (problem := known.adapter_problem(spec.route)):
        yield FieldViolation("route", problem)


def _arm_problems(spec: Spec, known: Known) -> Iterator[FieldViolation]:
    """Every arm has a name and what its kind of experiment needs. Weights are the allocation's matter."""
    for i, arm in enumerate(spec.arms):
        field = f"arms[{i}]"
        if spec.mode is Mode.HOLDOUT:
            yield from _holdout_arm(arm, field)
        elif arm.adapter and (problem := known.adapter_problem(arm.adapter.name, arm.adapter.version)):
            yield FieldViolation(f"{field}.adapter", problem)
    if not (spec.equal_arms or spec.mode is Mode.HOLDOUT):
        yield from _equal_arms(spec)


def _equal_arms(spec: Spec) -> Iterator[FieldViolation]:
    """Arms that are the same as one before them."""
    first: dict[AdapterRef | None, str] = {}
    for i, arm in enumerate(spec.arms):
        if (same := first.setdefault(arm.adapter, arm.name)) != arm.name:
            text = (
                f"is {arm.adapter or BASE}, as in arm {same}: there is nothing to compare. "
                "`lora-router experiments aa` tests the pipeline with equal arms; to plan them on purpose, "
                "set equal_arms"
            )
            yield FieldViolation(f"arms[{i}].adapter", text)


def _holdout_arm(arm: ArmSpec, field: str) -> Iterator[FieldViolation]:
    if arm.adapter is not None:
        text = "must be unset: a holdout serves nothing of its own, its units have what they have anyway"
        yield FieldViolation(f"{field}.adapter", text)


def conflict(
    name: str, spec: Spec, others: Iterable[Experiment], sees: Callable[[Experiment], bool] = all_seen
) -> str:
    """Why `spec` cannot run beside those that run; empty if it can. Of one that `sees` denies the text says
    only that it is in the way.

    Experiments of one namespace need slots apart, and units of one kind, or slots would divide nothing. Two
    on one route need one namespace. A holdout is in nobody's way: it only reads what others assign.
    """
    if spec.mode is Mode.HOLDOUT:
        return ""
    running = (
        e
        for e in others
        if e.state is Lifecycle.RUNNING and e.name != name and e.spec.mode is not Mode.HOLDOUT
    )
    found = ((other, problem) for other in running if (problem := _between(spec, other)))
    return next((problem if sees(other) else HIDDEN for other, problem in found), "")


def _between(spec: Spec, other: Experiment) -> str:
    shared = spec.namespace != "" and spec.namespace == other.spec.namespace
    if shared and spec.unit_label != other.spec.unit_label:
        return (
            f"its units are read from {_place(spec)}, those of {other.resource}, which runs in the namespace "
            f"{spec.namespace!r} too, from {_place(other.spec)}: units of a namespace must be one thing"
        )
    if shared and _overlap(spec.slot, other.spec.slot):
        mine, theirs = (f"[{low:g}, {high:g})" for low, high in (spec.slot, other.spec.slot))
        return (
            f"its slot {mine} of the namespace {spec.namespace!r} overlaps {theirs} of "
            f"{other.resource}, which runs: choose slots apart, or stop the other"
        )
    if spec.route == other.spec.route and not shared:
        return (
            f"{other.resource} runs on the route {spec.route!r} already: give both one namespace and slots "
            "apart, so that they share no unit, or stop the other"
        )
    return ""


def _place(spec: Spec) -> str:
    return f"the label {spec.unit_label!r}" if spec.unit_label else "routing.unit"


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def plan_warnings(spec: Spec) -> Iterator[str]:
    """What the plan itself makes hard to show."""
    yield from out_of_reach(spec)
    yield from shared_warnings(spec)
    yield from metric_warnings(spec)


def arm_warnings(spec: Spec, resolve: Resolve) -> Iterator[str]:
    """Versions that did not pass the gate, or that have gone since the plan was made."""
    for arm in spec.arms:
        if arm.adapter is None:
            continue
        try:
            info = resolve(arm.adapter.name, arm.adapter.version)
        except (AdapterNotFound, FailedPrecondition) as error:
            yield f"arm {arm.name} cannot answer, so something else does for it: {error.message}"
        else:
            if info.gate:
                yield f"arm {arm.name}: {arm.adapter} did not pass the gate: {info.gate}"


RULES = SequencePlan()


def segment_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Labels by whose values the effect is reported: distinct, and none that names units."""
    for label, count in Counter(segment.label for segment in spec.segments).items():
        if count > 1:
            yield FieldViolation(
                "segments", f"the label {label!r} is there twice: name all its values at once"
            )
    for i, segment in enumerate(spec.segments):
        if segment.label and segment.label == spec.unit_label:
            text = f"{segment.label!r} is the label that units are read from: every unit would be its own"
            yield FieldViolation(f"segments[{i}].label", text)


def out_of_reach(spec: Spec) -> Iterator[str]:
    """What the planned units of the smallest arm do not suffice for, with numbers."""
    if spec.mode is not Mode.SPLIT or not spec.arms:
        return
    arm = min(reversed(spec.arms), key=lambda arm: arm.weight)
    units = math.floor(spec.planned_units * arm.weight)
    there = f"{arm.name} gets {100 * arm.weight:.3g} % of {spec.planned_units:,} planned units, {units:,}"
    deciding = (spec.primary, *spec.guardrails)
    uncapped = [m.name for m in deciding if not (m.kind.rules.binary or _capped(m))]
    least = max(spec.min_units, RULES.burn_in_units if any(m.covariate for m in deciding) else 0)
    if uncapped and units < RULES.unbounded_units:
        need = RULES.unbounded_units
        yield f"{there}; without a cap {' and '.join(uncapped)} needs {need} in each arm: {_plan(arm, need)}"
    if units < least:
        yield f"{there}; nothing is promoted before {least:,} in each arm: {_plan(arm, least)}"


def _capped(metric: MetricSpec) -> bool:
    return metric.cap is not None and not metric.kind.rules.uncappable


def _plan(arm: ArmSpec, need: int) -> str:
    """What to do about it."""
    return f"plan {math.ceil(need / arm.weight - 1e-9):,} units, or give it more weight"
