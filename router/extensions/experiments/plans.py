"""Plans: all that is wrong with one, what deserves a second look, and which may run side by side.

The model checks single fields, `UnitAllocation`, `ExperimentDesign` and `SequencePlan` weights, shares and
thresholds. What fields say together and what the server has is checked here.
Warnings tell whether the smallest arm can have a verdict at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from router.errors import AdapterNotFound, FailedPrecondition, FieldViolation, InvalidRequest
from router.extensions.experiments.assignment import AssignmentSalts, UnitAllocation, WeightedArm
from router.extensions.experiments.model import (
    BASE,
    DENOMINATORS,
    ArmSpec,
    Experiment,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    Spec,
    Unanswered,
    listed,
)
from router.extensions.experiments.plan_file import field_problems
from router.extensions.experiments.report.source import metric_of
from router.extensions.experiments.stats.checks import Guardrail
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric
from router.extensions.experiments.times import (
    SHARE_EXAMPLE,
    SHARE_FORM,
    TIMES,
    WORDS,
    is_meant_as_share,
    shares_queue,
    slow_share,
)
from router.extensions.experiments.verdict import ExperimentDesign
from router.types import AdapterInfo, AdapterRef

WHOLE = (0.0, 1.0)
RARE = ("error", "cancelled", "length_stop")
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


def chosen(spec: Spec, before: Spec | None = None) -> Spec:
    """The plan with what it does not say of its metrics: how outcomes are combined, as is usual for the kind,
    and what a missing one counts as.

    An edited metric keeps what it had. In a new plan what clients record counts as 0, as conversions and
    amounts do, so that a mean is per user; what the server records is left out.
    """
    old = {} if before is None else {metric.name: metric for metric in before.metrics}

    def choose(metric: MetricSpec) -> MetricSpec:
        known = old.get(metric.name)
        usual = Unanswered.EXCLUDED if metric.built_in else Unanswered.ZERO
        if known is not None and known.kind is metric.kind and known.missing is not None:
            usual = known.missing
        return replace(metric, aggregate=metric.combined, missing=metric.missing or usual)

    return replace(
        spec,
        primary=choose(spec.primary),
        guardrails=tuple(map(choose, spec.guardrails)),
        secondary=tuple(map(choose, spec.secondary)),
    )


def plan_problems(spec: Spec, known: Known) -> list[FieldViolation]:
    """Fields by their names in the resource; empty if the plan can be kept and started."""
    return [
        *field_problems(spec),
        *_slot(spec),
        *_route_problems(spec, known),
        *_arm_problems(spec, known),
        *_allocation(spec),
        *metric_problems(spec),
        *_shared_primary(spec),
        *_segments(spec),
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
    primary = _uncapped(spec.primary)
    weights = {arm.name: arm.weight for arm in spec.arms}

    def build() -> ExperimentDesign:
        rails = _guardrails_that_hold(spec)
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
    yield from _out_of_reach(spec)
    yield from _metric_warnings(spec)


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


def _segments(spec: Spec) -> Iterator[FieldViolation]:
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


def _out_of_reach(spec: Spec) -> Iterator[str]:
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


# -- Metrics


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
    yield from _window_problems(spec)


def _guardrails_that_hold(spec: Spec) -> tuple[Guardrail, ...]:
    """Those with which a design can be built and checked further."""
    return tuple(_guardrail(m) for m in spec.guardrails if not list(_margin_problems(m, "")))


def _uncapped(metric: MetricSpec) -> ComparedMetric:
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
    yield from _cap_problems(metric, f"{field}.")


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


def _cap_problems(metric: MetricSpec, within: str) -> Iterator[FieldViolation]:
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
    return Guardrail(_uncapped(metric), metric.margin, metric.relative, metric.improve)


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


def _window_problems(spec: Spec) -> Iterator[FieldViolation]:
    """Windows of metrics are parts of the plan's, which the primary metric has."""
    if spec.primary.window:
        yield FieldViolation(
            "primary.window", "belongs to other metrics: the primary one has the plan's window"
        )
    for field, metrics in (("guardrails", spec.guardrails), ("secondary", spec.secondary)):
        for i, seconds in enumerate(metric.window for metric in metrics):
            if seconds and not (math.isfinite(seconds) and 1 <= seconds <= spec.window):
                text = (
                    f"must be between a second and the plan's window of {spec.window:g} s, got {seconds:g} s"
                )
                yield FieldViolation(f"{field}[{i}].window", text)


def _shared_primary(spec: Spec) -> Iterator[FieldViolation]:
    """A time decides nothing where arms share a queue."""
    if shares_queue(spec.primary.name) and not spec.equal_arms:
        text = (
            f"{spec.primary.name} cannot decide here: requests of all arms wait in one queue, so a slower arm"
            " slows the others just as much. Make it a guardrail, which stops an arm that is slow by itself"
        )
        yield FieldViolation("primary.name", text)


def _metric_warnings(spec: Spec) -> Iterator[str]:
    """Guardrails that stop harm late, that stand in the way of a promotion, or that compare little."""
    for rail in spec.guardrails:
        if rail.name in TIMES:
            yield (
                f"guardrail {rail.name}: {WORDS} to learn what a roll-out does; here it stops an arm that is"
                " slow by itself"
            )
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
