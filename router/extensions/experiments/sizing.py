"""How long an experiment takes: effect, units and days to a verdict, by the sequences that will judge it.

The smallest arm decides, against control: it has its units last. Nothing is asked of a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import StatisticsError
from typing import Self

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.model import MAX_ARMS, MetricSpec, Spec
from router.extensions.experiments.report.source import metric_of
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, invalid
from router.extensions.experiments.stats.planning import Size, size_for, smallest_effect
from router.quantities import percent

PLANNED = 5000
MOST_UNITS, MOST_DAYS = 10**12, 36_500.0
COUNTLESS = FieldViolation("effect", "with these numbers it takes more units than can be counted")
NO_DEVIATION = "of a proportion follows from its baseline: leave it out"
RULES = SequencePlan()


@dataclass(frozen=True, slots=True)
class SizeQuestion:
    """How long does an experiment on a metric take?

    `weights` of the arms, control first, to any sum. `baseline` is control's value, `deviation` a unit's
    standard deviation, `effect` treatment minus control; without one the answer is the smallest that `days`
    or `units` (of all arms) find. `units_per_day` come to the route, of which `enrolment` takes part.
    `outcome_share` is the part of the units that has an outcome, where those without are left out.
    """

    metric: MetricSpec
    baseline: float | None = None
    deviation: float | None = None
    effect: float | None = None
    weights: tuple[float, ...] = (0.5, 0.5)
    units_per_day: float | None = None
    enrolment: float = 1.0
    days: float | None = None
    units: int | None = None
    alpha: float = 0.05
    power: float = 0.8
    outcome_share: float = 1.0

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """What the planned units of a plan find."""
        weights = sorted(spec.arms, key=lambda arm: arm.name != spec.control)
        return cls(
            spec.primary,
            weights=tuple(arm.weight for arm in weights),
            enrolment=spec.enrolment,
            units=spec.planned_units,
            alpha=spec.alpha,
        )

    @property
    def budget(self) -> int | None:
        """Units of all arms that it may take; None: as many as it needs."""
        found = [] if self.units is None else [self.units]
        if self.days is not None and self.per_day is not None:
            found.append(math.floor(self.days * self.per_day))
        return min(found, default=None)

    @property
    def per_day(self) -> float | None:
        """New units of all arms a day."""
        return None if self.units_per_day is None else self.units_per_day * self.enrolment


@dataclass(frozen=True, slots=True)
class SizeAnswer:
    """How large an effect, and units of all arms until `power` of such experiments have their verdict.

    `fixed_units` is what one look at the end would take, `factor` what looking all the time costs;
    `half_units` is where half of them have it, and before `least_units` there is no verdict. `effect` None:
    no effect is found in the units that there are. `days` None: traffic is not known.
    """

    effect: float | None
    fixed_units: int
    units: int
    half_units: int
    factor: float
    least_units: int
    days: float | None = None
    notes: tuple[str, ...] = ()


class _Sizing:
    """A question in the terms of the statistics: `share` is the smallest arm's of its own and control's
    units, and `counted` the part of all units that is theirs and has a value."""

    def __init__(self, question: SizeQuestion) -> None:
        control, *others = question.weights
        self.question, self.metric = question, _plain(question.metric)
        self.share = min(others) / (control + min(others))
        self.counted = (control + min(others)) / math.fsum(question.weights) * question.outcome_share
        self.alpha = question.alpha / len(others)  # the first of several to win must win at that (Holm)
        self.spread = None if question.deviation is None else question.deviation**2
        self.control = 0.0 if question.baseline is None else question.baseline

    def whole(self, units: float) -> int:
        """All arms' units of which so many of the two have a value."""
        return math.ceil(units / self.counted - 1e-9)

    def size(self, effect: float) -> Size:
        """What the effect takes."""
        plan = SequencePlan(alpha=self.alpha)
        return size_for(self.metric, self.control, effect, self.spread, self.share, plan, self.question.power)

    def smallest(self, units: int) -> float | None:
        """The smallest change for the better that so many units of all arms find; None: none is."""
        control = self.control
        if self.metric.kind.rules.binary:  # a fall is a rise of what is left
            control = max(control if self.metric.sign > 0 else 1 - control, 1e-9)
        pair = math.floor(units * self.counted + 1e-9)
        found = smallest_effect(
            self.metric, control, pair, self.spread, self.share, self.alpha, self.question.power
        )
        return None if found is None else self.metric.sign * found


def size_of(question: SizeQuestion) -> SizeAnswer:
    """The answer. Raises InvalidRequest naming every bad field."""
    if found := list(_problems(question)):
        raise InvalidRequest(found)
    try:
        return _answer(_Sizing(question))
    except (ArithmeticError, StatisticsError):  # at the edge of what a float can be
        raise InvalidRequest([COUNTLESS]) from None


def _plain(metric: MetricSpec) -> ComparedMetric:
    """Without its covariate, since nothing is known of that."""
    bounds = metric_of(metric).bounds
    return ComparedMetric(metric.name, metric.kind, metric.higher_is_better, bounds=bounds)


def _problems(question: SizeQuestion) -> Iterator[FieldViolation]:
    weights = question.weights
    if not (2 <= len(weights) <= MAX_ARMS and all(w > 0 and math.isfinite(w) for w in weights)):
        listed = "/".join(f"{w:g}" for w in weights)
        text = f"must be two to {MAX_ARMS} numbers above 0, control's first, got {listed}"
        yield FieldViolation("weights", text)
    if not 0 < question.alpha <= 0.2:
        yield FieldViolation("alpha", f"must be above 0 and at most 0.2, got {question.alpha:g}")
    elif not question.alpha < question.power <= 0.999:
        text = f"must be above alpha, {question.alpha:g}, and at most 0.999, got {question.power:g}"
        yield FieldViolation("power", text)
    most = {"enrolment": 1.0, "outcome_share": 1.0, "days": MOST_DAYS}
    for field, limit in (most | dict.fromkeys(("units_per_day", "units"), float(MOST_UNITS))).items():
        value = getattr(question, field)
        if value is not None and not 0 < value <= limit:
            yield FieldViolation(field, f"must be above 0 and at most {limit:,.0f}, got {value:g}")
    if question.days is not None and question.units_per_day is None:
        yield FieldViolation("units_per_day", "is needed with days")
    yield from _value_problems(question)


def _value_problems(question: SizeQuestion) -> Iterator[FieldViolation]:
    baseline, deviation, effect = question.baseline, question.deviation, question.effect
    kind, name = question.metric.kind, question.metric.name
    low, high = _plain(question.metric).range
    if baseline is None and kind.rules.binary:
        yield FieldViolation("baseline", f"is needed: what is {name} in control?")
    elif baseline is not None and not (math.isfinite(baseline) and low <= baseline <= high):
        bounds = f"lie within {low:g} and {high:g}" if math.isfinite(low) else "be a finite number"
        yield FieldViolation("baseline", f"of {name} must {bounds}, got {baseline:g}")
    elif effect is not None and (effect == 0 or not math.isfinite(effect)):
        yield FieldViolation("effect", f"must be a finite number other than 0, got {effect:g}")
    elif effect is not None and baseline is not None:
        yield from _effect_problems(question, baseline, effect)
    if kind.rules.binary:
        if deviation is not None:
            yield FieldViolation("deviation", NO_DEVIATION)
    elif deviation is None:
        yield FieldViolation("deviation", f"is needed: how much do units differ in {name}?")
    elif not (math.isfinite(deviation) and deviation > 0):
        yield FieldViolation("deviation", f"must be a finite number above 0, got {deviation:g}")
    elif deviation > (high - low) / 2:
        text = f"of values between {low:g} and {high:g} is at most {(high - low) / 2:g}, got {deviation:g}"
        yield FieldViolation("deviation", text)


def _effect_problems(question: SizeQuestion, baseline: float, effect: float) -> Iterator[FieldViolation]:
    """No unit can have such values, or all would be alike."""
    low, high = _plain(question.metric).range
    reached = baseline + effect
    if not low <= reached <= high:
        made = f"is impossible: {baseline:g} and {effect:+g} make {reached:g}"
        what = f"the {question.metric.kind} {question.metric.name}"
        yield FieldViolation("effect", f"{made}, and {what} lies within {low:g} and {high:g}")
    elif question.metric.kind.rules.binary and {baseline, reached} <= {0.0, 1.0}:
        text = "all units of both arms would be alike: one look at a few units shows it"
        yield FieldViolation("effect", text)


def _answer(sizing: _Sizing) -> SizeAnswer:
    question, notes = sizing.question, list[str]()
    effect, budget = question.effect, question.budget
    if (others := len(question.weights) - 1) > 1:
        level = f"{sizing.alpha:.3g}, since the first to win must win at that (Holm)"
        notes.append(f"{others} arms against control: each is sized at a level of {level}")
    if question.outcome_share < 1:
        share = f"{percent(question.outcome_share)} of units have {question.metric.name}"
        notes.append(f"{share}; all units are counted, also the others")
    if effect is None:
        if budget is None:
            budget = PLANNED
            what = f"the smallest effect that {budget:,} units find"
            notes.append(f"neither effect nor days nor units given: {what}")
        effect = sizing.smallest(budget)
        if effect is None:
            return _no_effect_answer(sizing, budget, notes)
    size = sizing.size(effect)
    units = sizing.whole(size.units)
    notes += _second_look(sizing, size, units, budget)
    return SizeAnswer(
        effect,
        sizing.whole(size.fixed),
        units,
        sizing.whole(size.half),
        size.factor,
        sizing.whole(size.least),
        units / question.per_day if question.per_day else None,
        tuple(notes),
    )


def _no_effect_answer(sizing: _Sizing, budget: int, notes: list[str]) -> SizeAnswer:
    """No effect is found in so few units."""
    binary, sign, per_day = sizing.metric.kind.rules.binary, sizing.metric.sign, sizing.question.per_day
    room = 1 - sizing.control if sign > 0 else sizing.control
    if binary and not room:
        raise invalid("baseline", f"is {sizing.control:g} already: nothing can be better")
    size = sizing.size(sign * (room / 2 if binary else sizing.question.deviation or 1.0))
    least = sizing.whole(size.least)
    notes.append(f"no effect is found in {budget:,} units: {_waits(sizing, size)}")
    return SizeAnswer(None, 0, 0, 0, 0.0, least, least / per_day if per_day else None, tuple(notes))


def _second_look(sizing: _Sizing, size: Size, units: int, budget: int | None) -> Iterator[str]:
    if size.units <= size.least:
        yield f"the effect would be clear sooner: {_waits(sizing, size)}"
    if budget is not None and units > budget:
        found = sizing.smallest(budget)
        less = "no effect is" if found is None else f"the smallest effect is {found:+.3g} that is"
        yield f"out of reach: {units:,} units are needed, {budget:,} are there; {less} found by then"


def _waits(sizing: _Sizing, size: Size) -> str:
    """What is waited for before there is an interval, with numbers."""
    smaller, least = min(sizing.share, 1 - sizing.share), sizing.whole(size.least)
    bounded = math.isfinite(sum(sizing.metric.range))
    each = RULES.burn_in_units if bounded else RULES.unbounded_units
    if math.ceil(each / smaller - 1e-9) >= size.least:
        why = "" if bounded else f", since {sizing.metric.name} has no cap"
        return f"{each} units are needed in each arm{why}, which the smallest has at {least:,} of all"
    events = math.ceil(max(RULES.burn_in_events, RULES.arm_events / smaller) - 1e-9)
    return f"{events} ones and as many zeros are needed at this split, at about {least:,} units of all"


def days_text(days: float) -> str:
    """Days, with a fraction where they are few."""
    return f"{days:,.0f}" if days >= 10 else f"{days:.1f}"


def effect_text(question: SizeQuestion, answer: SizeAnswer) -> str:
    """The effect in the metric's own units: points of a proportion."""
    effect = answer.effect or 0.0
    return f"{100 * effect:+.3g} points" if question.metric.kind.rules.binary else f"{effect:+.3g}"


def sentence(question: SizeQuestion, answer: SizeAnswer) -> str:
    """All of it in one."""
    split = "/".join(f"{100 * weight:.4g}" for weight in question.weights)
    traffic = "" if question.units_per_day is None else f" at {question.units_per_day:,.0f} units a day"
    share = "" if question.enrolment == 1 else f", {question.enrolment:.3g} of which take part"
    days = "" if answer.days is None else f", about {days_text(answer.days)} days"
    found = f"{effect_text(question, answer)} {'are' if question.metric.kind.rules.binary else 'is'}"
    return (
        f"{split}{traffic}{share}: {found} found with {100 * question.power:.4g} % power by"
        f" {answer.units:,} planned units{days}; one look at the end would take {answer.fixed_units:,}"
        f" (x{answer.factor:.2f})"
    )
