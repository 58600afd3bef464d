"""What is decided, by which rules, and when not at all: designs, health of the pipeline, verdicts.

A verdict is promote, stop for harm, undecided or invalid, with the rule that gave it and its numbers: a pure
function of a design, the arms' sums and the pipeline's health, which may be called at every outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.model import WITHIN
from router.extensions.experiments.report.model import Ruling
from router.extensions.experiments.stats.checks import (
    Guarded,
    Guardrail,
    Maturity,
    SampleRatio,
    State,
    corrected,
    guard,
)
from router.extensions.experiments.stats.compare import (
    ArmComparison,
    ConfidenceInterval,
    Method,
    SequencePlan,
    compare,
    holm,
)
from router.extensions.experiments.stats.missing import TOLERATED, Missing
from router.extensions.experiments.stats.moments import ComparedMetric, Moments, invalid
from router.extensions.experiments.stats.planned import Looks, PlannedFinding, better_end, found_by_plan
from router.extensions.experiments.stats.sequences import Line
from router.extensions.experiments.words import quantity_of
from router.quantities import percent

CROSSED = 0.01


@dataclass(frozen=True)
class ExperimentDesign:
    """Primary metric, guardrails and thresholds. Raises InvalidRequest naming every wrong field.

    `weights` by arm, control included. `margin` is how much worse the primary metric may be for an arm to
    be promoted: 0 asks it to be better. `plan.units` counts all arms. `min_units` in each arm and
    `min_matured`, a share of exposures, are needed to promote, not to stop for harm. `early` are guardrails
    as they are read early, for harm only.
    """

    control: str
    weights: Mapping[str, float]
    primary: ComparedMetric
    guardrails: tuple[Guardrail, ...] = ()
    margin: float = 0.0
    plan: SequencePlan = field(default_factory=SequencePlan)
    min_units: int = 100
    min_matured: float = 0.8
    early: tuple[Guardrail, ...] = ()

    def __post_init__(self) -> None:
        if found := list(self._violations()):
            raise InvalidRequest(found)

    @property
    def treatments(self) -> tuple[str, ...]:
        """All arms but control."""
        return tuple(arm for arm in self.weights if arm != self.control)

    def plan_for(self, arm: str) -> SequencePlan:
        """The plan of one arm against control: with its share of the planned units."""
        share = self.weights[self.control] + self.weights[arm]
        units = max(2 * self.plan.burn_in_units, round(self.plan.units * share))
        return replace(self.plan, units=units)

    def _violations(self) -> list[FieldViolation]:
        found = []
        if self.control not in self.weights:
            found.append(FieldViolation("control", f"{self.control!r} is none of the arms"))
        if len(self.weights) < 2:
            found.append(FieldViolation("weights", "an experiment needs two arms or more"))
        positive = all(w > 0 for w in self.weights.values())
        if not positive or not math.isclose(math.fsum(self.weights.values()), 1, abs_tol=1e-9):
            found.append(FieldViolation("weights", "must be above 0 and sum to 1"))
        names = [self.primary.name, *(g.metric.name for g in (*self.guardrails, *self.early))]
        if len(set(names)) < len(names):
            found.append(FieldViolation("guardrails", "every metric may be named once"))
        if not (self.margin >= 0 and math.isfinite(self.margin)):
            found.append(FieldViolation("margin", f"must be 0 or above, got {self.margin}"))
        if self.min_units < 2:
            found.append(FieldViolation("min_units", f"must be 2 or more, got {self.min_units}"))
        if not 0 <= self.min_matured <= 1:
            found.append(FieldViolation("min_matured", f"must be within 0 and 1, got {self.min_matured}"))
        return found


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that failed: its rule, and what it found with the numbers."""

    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class PipelineHealth:
    """Results of the checks. `missing` is by arm, each against control.

    `crossed` is the share of units that were shown more than one arm; `mixed` names what changed under
    a running phase (adapter, base or router digest of an arm).
    """

    sample_ratio: SampleRatio
    maturity: Maturity
    missing: Mapping[str, Missing] = field(default_factory=dict)
    crossed: float = 0.0
    mixed: tuple[str, ...] = ()

    def faults(self) -> list[FailedCheck]:
        """Everything that makes verdicts invalid; empty if sound."""
        return list(self._faults())

    def _faults(self) -> Iterator[FailedCheck]:
        if (ratio := self.sample_ratio).alarm:
            wanted = ", ".join(f"{n:,.0f}" for n in ratio.expected)
            got = ", ".join(f"{n:,}" for n in ratio.counts)
            level = f"p = {ratio.p:.2g}, alarm at {ratio.alpha:g}"
            text = f"the arms do not have their planned shares of units: {got} instead of {wanted} ({level})"
            yield FailedCheck("sample-ratio", text)
        for arm, found in self.missing.items():
            if found.alarm:
                shares = percent(1 - found.treatment), percent(1 - found.control)
                text = (
                    f"an outcome from {shares[0]} of the units of {arm} and {shares[1]} of those of control,"
                    f" which differ by more than {percent(TOLERATED, 0)} of them"
                )
                yield FailedCheck("missing-outcomes", text)
        if self.crossed > CROSSED:
            yield FailedCheck("crossed-units", f"{percent(self.crossed)} of units saw more than one arm")
        if self.mixed:
            yield FailedCheck("mixed-digests", f"changed while it ran: {', '.join(self.mixed)}")


class VerdictDecision(StrEnum):
    """What may be done."""

    PROMOTE = "promote"
    HARM = "stop for harm"
    UNDECIDED = "undecided"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ArmVerdict:
    """One arm against control. `primary` is None until both arms have two units; `p` is Holm's over all arms;
    `gain` is the effect on the primary metric, positive where it is better."""

    arm: str
    verdict: Ruling
    primary: ArmComparison | None
    p: float
    guardrails: tuple[Guarded, ...] = ()
    early: tuple[Guarded, ...] = ()
    gain: float = 0.0


@dataclass(frozen=True, slots=True)
class ExperimentVerdict:
    """The experiment's verdict, the arm it is about (if one), and every arm's."""

    verdict: Ruling
    arm: str | None
    arms: tuple[ArmVerdict, ...]


Outcomes = Mapping[str, Mapping[str, Moments]]  # arm, then metric
Course = Mapping[str, Mapping[str, Looks]]
"""Arm but control, then metric: the matured units' sums at the end of each stretch of time."""


def judge(
    design: ExperimentDesign,
    outcomes: Outcomes,
    health: PipelineHealth,
    course: Course | None = None,
) -> ExperimentVerdict:
    """The verdict at this look, from the matured units' sums by arm and metric. Without a course the planned
    bound shows nothing."""
    looks = course or {}
    _check(design, outcomes)
    primaries = {arm: _primary(design, outcomes, looks, arm) for arm in design.treatments}
    adjusted = holm({arm: found.comparison.p if found else 1.0 for arm, found in primaries.items()})
    faults = health.faults()
    arms = tuple(
        _arm(design, outcomes, health, looks, arm, primaries[arm], adjusted[arm]) for arm in design.treatments
    )
    if faults:
        ruling = _invalid(faults)
        return ExperimentVerdict(ruling, None, tuple(replace(arm, verdict=ruling) for arm in arms))
    return _together(arms)


def _check(design: ExperimentDesign, outcomes: Outcomes) -> None:
    metrics = [design.primary, *(g.metric for g in (*design.guardrails, *design.early))]
    for arm in design.weights:
        for metric in metrics:
            if metric.name not in outcomes.get(arm, {}):
                raise invalid(f"outcomes[{arm}][{metric.name}]", "is not given; empty sums say 'none yet'")


def _sums(outcomes: Outcomes, control: str, arm: str, metric: str) -> tuple[Moments, Moments] | None:
    """Control's and the arm's, once both can be compared."""
    first, second = outcomes[control][metric], outcomes[arm][metric]
    return (first, second) if min(first.n, second.n) >= 2 else None


class _Compared(NamedTuple):
    """An arm against control, by all that the design has."""

    comparison: ArmComparison
    planned: PlannedFinding | None


def _primary(design: ExperimentDesign, outcomes: Outcomes, course: Course, arm: str) -> _Compared | None:
    sums = _sums(outcomes, design.control, arm, design.primary.name)
    line = Line(offset=-design.primary.sign * design.margin)
    if sums is None:
        return None
    found = compare(design.primary, *sums, design.plan_for(arm), line)
    plan = design.plan_for(arm)
    planned = _planned(course, arm, design.primary, line, plan)
    if planned is None:
        return _Compared(found, None)
    return _Compared(_by_both(design.primary, line, found, planned), planned)


def _planned(
    course: Course,
    arm: str,
    metric: ComparedMetric,
    line: Line,
    plan: SequencePlan,
) -> PlannedFinding | None:
    """What the planned bound shows; None where the course has no look."""
    looks = course.get(arm, {}).get(metric.name)
    if looks is None or not len(looks.units):
        return None
    return found_by_plan(metric, looks, plan, line, metric.sign)


def _by_both(
    metric: ComparedMetric, line: Line, always: ArmComparison, planned: PlannedFinding
) -> ArmComparison:
    """The always-valid comparison, with p and the better end of the interval by whichever of the planned
    bound and the always-valid sequence shows more.

    A difference that has turned since a look showed it is not shown any more, and no interval leaves out the
    value that it is around.
    """
    control, treatment = always.values
    p = always.p
    if metric.sign * (treatment - line.scale * control - line.offset) > 0:
        p = min(always.p, planned.p)
    interval = _interval(metric, always.interval, planned.edge, always.effect)
    relative = always.relative_interval
    if relative is not None and always.relative is not None:
        relative = _interval(metric, relative, planned.relative_edge, always.relative)
    worse = 0 if metric.sign > 0 else 1
    by_plan = interval[worse] != always.interval[worse]
    return replace(
        always,
        p=p,
        interval=interval,
        relative_interval=relative,
        method=Method.PLANNED if by_plan else always.method,
    )


def _interval(
    metric: ComparedMetric, always: ConfidenceInterval, edge: float, value: float
) -> ConfidenceInterval:
    low, high = better_end(metric.sign, always, edge, value)
    return ConfidenceInterval(float(low), float(high))


def _arm(
    design: ExperimentDesign,
    outcomes: Outcomes,
    health: PipelineHealth,
    course: Course,
    arm: str,
    primary: _Compared | None,
    p: float,
) -> ArmVerdict:
    guarded, early = (
        tuple(
            read(rail, sums)
            for rail in rails
            if (sums := _sums(outcomes, design.control, arm, rail.metric.name))
        )
        for rails, read in (
            (design.guardrails, partial(_guarded, design, course, arm)),
            (design.early, partial(_guarded_early, design, arm)),
        )
    )
    found, planned = primary or (None, None)
    gain = design.primary.sign * found.effect if found else 0.0
    ruling = _rule(design, health, health.missing.get(arm), found, p, guarded, early, planned)
    return ArmVerdict(arm, ruling, found, p, guarded, early, gain)


def _guarded_early(
    design: ExperimentDesign, arm: str, rail: Guardrail, sums: tuple[Moments, Moments]
) -> Guarded:
    """An early reading, for harm only."""
    return guard(rail, *sums, _plan_of_rail(design, rail, arm))


def _guarded(
    design: ExperimentDesign, course: Course, arm: str, rail: Guardrail, sums: tuple[Moments, Moments]
) -> Guarded:
    """A guardrail that is within its margin by whichever shows it. The planned bound has half of alpha for
    that, as it has for a primary metric that is better. What has to improve is always-valid
    alone."""
    plan = _plan_of_rail(design, rail, arm)
    found = guard(rail, *sums, plan)
    if rail.improve:
        return found
    planned = _planned(course, arm, rail.metric, rail.line, plan)
    if planned is None or found.state is State.BEYOND:
        return found
    always = replace(found.comparison, p=found.p_within)
    both = _by_both(rail.metric, rail.line, always, planned)
    state = State.WITHIN if both.p <= plan.alpha else found.state
    return replace(found, comparison=both, p_within=both.p, state=state)


def _plan_of_rail(design: ExperimentDesign, rail: Guardrail, arm: str) -> SequencePlan:
    """What has to improve decides like the primary metric: over all arms its error is alpha, too."""
    plan = design.plan_for(arm)
    return corrected(plan, len(design.treatments)) if rail.improve else plan


def _rule(
    design: ExperimentDesign,
    health: PipelineHealth,
    missing: Missing | None,
    primary: ArmComparison | None,
    p: float,
    guarded: tuple[Guarded, ...],
    early: tuple[Guarded, ...],
    planned: PlannedFinding | None,
) -> Ruling:
    """The first rule that applies: harm before everything, promotion only when all else is fulfilled."""
    for found in (*guarded, *early):
        if found.state is State.BEYOND:
            return Ruling(VerdictDecision.HARM, "guardrail", _guardrail_in_words(found))
    young = health.maturity.exposed > 0 and health.maturity.share < design.min_matured
    if primary is None:
        if young:
            return _immature(design, health)
        return Ruling(VerdictDecision.UNDECIDED, "too-few-units", "an arm has fewer than two units")
    side = design.primary.sign * primary.effect + design.margin
    shown = p <= design.plan.alpha
    words = _numbers(primary, design.primary)
    if shown and side < 0:
        return Ruling(VerdictDecision.HARM, "primary-worse", words)
    if young:
        return _immature(design, health)
    if min(primary.units) < design.min_units:
        text = f"the smaller arm has {min(primary.units):,} units, {design.min_units:,} are needed"
        return Ruling(VerdictDecision.UNDECIDED, "too-few-units", text)
    if not shown:
        return _open(design, primary, words, planned)
    return _held_back(design, missing, guarded, words) or _promoted(design, words)


def _immature(design: ExperimentDesign, health: PipelineHealth) -> Ruling:
    share, needed = percent(health.maturity.share, 0), percent(design.min_matured, 0)
    text = f"{share} of units had time for their outcomes, {needed} are needed"
    return Ruling(VerdictDecision.UNDECIDED, "immature", text)


def _held_back(
    design: ExperimentDesign, missing: Missing | None, guarded: tuple[Guarded, ...], words: str
) -> Ruling | None:
    """What keeps an arm from promotion whose effect is shown; None: nothing."""
    if missing is not None and not missing.settled:
        return Ruling(VerdictDecision.UNDECIDED, "missing-open", f"{words}; {_missing_in_words(missing)}")
    unsure = [g for g in guarded if g.state is not State.WITHIN]
    if unsure or len(guarded) < len(design.guardrails):
        text = "; ".join(map(_guardrail_in_words, unsure)) or "a guardrail has too few units"
        return Ruling(VerdictDecision.UNDECIDED, "guardrail-open", text)
    return None


def _promoted(design: ExperimentDesign, words: str) -> Ruling:
    rule = "primary-not-worse" if design.margin else "primary-better"
    return Ruling(VerdictDecision.PROMOTE, rule, words)


def _open(
    design: ExperimentDesign, primary: ArmComparison, words: str, planned: PlannedFinding | None
) -> Ruling:
    """Why nothing is shown of the primary metric."""
    if primary.waiting is not None and not math.isfinite(primary.interval.low):
        return Ruling(VerdictDecision.UNDECIDED, primary.waiting.rule, primary.waiting.words)
    if planned is not None and planned.reached:
        text = f"no difference found at the planned size of {design.plan.units:,} units: {words}"
        return Ruling(VerdictDecision.UNDECIDED, "planned-size-reached", text)
    return Ruling(VerdictDecision.UNDECIDED, "primary-open", words)


def _missing_in_words(found: Missing) -> str:
    """Why missing outcomes may undo an effect."""
    shares = f"{found.treatment:.1%} of units have no outcome, {found.control:.1%} in control"
    if found.lee is None:
        return f"{shares}, and the arms differ in that: a ratio has no bounds for it"
    low, high = found.lee
    return f"{shares}: if other users answer, the effect may be from {low:+.4g} to {high:+.4g} (Lee's bounds)"


def _invalid(faults: list[FailedCheck]) -> Ruling:
    return Ruling(VerdictDecision.INVALID, faults[0].rule, "; ".join(f.text for f in faults))


def _together(arms: tuple[ArmVerdict, ...]) -> ExperimentVerdict:
    """One verdict of all arms: promote the best that may be, stop if all harm, else go on."""
    promoted = [a for a in arms if a.verdict.decision == VerdictDecision.PROMOTE]
    if promoted:
        best = max(promoted, key=lambda a: a.gain)
        return ExperimentVerdict(best.verdict, best.arm, arms)
    if all(a.verdict.decision == VerdictDecision.HARM for a in arms):
        return ExperimentVerdict(arms[0].verdict, arms[0].arm if len(arms) == 1 else None, arms)
    still = next(a for a in arms if a.verdict.decision != VerdictDecision.HARM)
    return ExperimentVerdict(still.verdict, still.arm if len(arms) == 1 else None, arms)


def _numbers(found: ArmComparison, metric: ComparedMetric) -> str:
    """`thumbs_up: +28.5 points (17.0 to 38.0), 80.5 % against 52.0 %`; p has a field of its own."""
    form, (control, treatment) = quantity_of(metric.name, metric.kind), found.values
    change = form.change(found.effect, *found.interval)
    return f"{found.metric}: {change}, {form.value(treatment)} against {form.value(control)}"


def _guardrail_in_words(found: Guarded) -> str:
    rail = found.guardrail
    name, _, early = rail.metric.name.partition(WITHIN)
    form = quantity_of(name, rail.metric.kind)
    if rail.improve:
        return f"{_numbers(found.comparison, rail.metric)}; it must become better"
    margin = percent(rail.margin) if rail.relative else form.margin(rail.margin)
    numbers = _numbers(replace(found.comparison, metric=name), replace(rail.metric, name=name))
    within = f" in the first {early} seconds" if early else ""
    return f"{numbers}{within}; at most {margin} worse is allowed"
