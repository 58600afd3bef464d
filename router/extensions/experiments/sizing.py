"""How long an experiment takes: effect, units and days to a verdict, by the sequences that will judge it.

The smallest arm decides, against control: it has its units last. What a question leaves open (a metric's
value and spread, the route's traffic) is read from the last experiment that had it; the notes say which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import StatisticsError
from typing import TYPE_CHECKING

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.metric_plans import cap_problems
from router.extensions.experiments.model import (
    Experiment,
    ExperimentPhase,
    Kind,
    MetricSpec,
    Mode,
    SizeAnswer,
    SizeQuestion,
    Unanswered,
)
from router.extensions.experiments.names import WORD_FORM, is_word
from router.extensions.experiments.plans import RULES, events_needed
from router.extensions.experiments.report.source import (
    exposed_units,
    mature_buckets,
    metric_of,
    total_moments,
)
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, adjusted_estimates, estimate, invalid
from router.extensions.experiments.stats.planning import Size, size_for, smallest_effect
from router.extensions.experiments.words import duration
from router.quantities import counted, percent

if TYPE_CHECKING:  # SQLAlchemy, which a plan without history does not need
    from router.extensions.experiments.store.series import PhaseData, TimeBucket
    from router.extensions.experiments.store.store import ExperimentStore

PLANNED = 5000
MOST_UNITS, MOST_DAYS, MOST_ARMS = 10**12, 36_500.0, 32
MOST_COUNTED = (1 << 63) - 1  # units that an answer can tell of
COUNTED = ("fixed_units", "units", "half_units", "least_units")
COUNTLESS = FieldViolation("effect", "with these numbers it takes more units than can be counted")
NO_DEVIATION = "of a proportion follows from its baseline: leave it out"
NO_SPREAD = "is 0: {name} would have the same value for every unit, and nothing could be shown by it"
DAY, WEEK = 86_400.0, 604_800.0
ENOUGH = 20
"""Units of control from which a rate or a deviation is used at all."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """A question with nothing left open. `share` is the smallest arm's of its own and control's units, which
    are the part `both` of all, and of which the part `answering` has a value. `spread` None: a proportion's
    own."""

    question: SizeQuestion
    metric: ComparedMetric
    baseline: float
    spread: float | None
    share: float
    both: float
    arms: int  # without control
    answering: float = 1.0

    @property
    def alpha(self) -> float:
        """What is left of it for one arm: the first of several to win must win at that (Holm)."""
        return self.question.alpha / self.arms

    @property
    def per_day(self) -> float | None:
        """New units of all arms a day."""
        there = self.question.units_per_day
        return None if there is None else there * self.question.enrolment

    @property
    def budget(self) -> int | None:
        """Units of all arms that it may take; None: as many as it needs."""
        found = [] if self.question.units is None else [self.question.units]
        if self.question.days is not None and self.per_day is not None:
            found.append(math.floor(self.question.days * self.per_day))
        return min(found, default=None)

    @property
    def deviation(self) -> float:
        """Of a unit's value."""
        return math.sqrt(self.baseline * (1 - self.baseline) if self.spread is None else self.spread)

    def pair(self, units: float) -> int:
        """Of all arms' units those of the two that have a value."""
        return math.floor(units * self.both * self.answering + 1e-9)

    def whole(self, units: float) -> int:
        """All arms' units of which so many of the two have a value."""
        return math.ceil(units / (self.both * self.answering) - 1e-9)

    def size(self, effect: float) -> Size:
        """What the effect takes."""

        control = self.baseline if math.isfinite(self.baseline) else 0.0
        plan = SequencePlan(alpha=self.alpha)
        return size_for(self.metric, control, effect, self.spread, self.share, plan, self.question.power)

    def smallest(self, units: int) -> float | None:
        """The smallest change for the better that so many units of all arms find; None: none is."""
        control = self.baseline if math.isfinite(self.baseline) else 0.0
        if self.metric.kind.rules.binary:  # a fall is a rise of what is left
            control = max(control if self.metric.sign > 0 else 1 - control, 1e-9)
        found = smallest_effect(
            self.metric,
            control,
            self.pair(units),
            self.spread,
            self.share,
            self.alpha,
            self.question.power,
        )
        return None if found is None else self.metric.sign * found


@dataclass(frozen=True, slots=True)
class VisibleHistory:
    """The history of those experiments that `sees` lets somebody know of."""

    store: ExperimentStore
    sees: Callable[[Experiment], bool]

    def list(self) -> tuple[Experiment, ...]:
        """All of those, by name."""
        return tuple(filter(self.sees, self.store.list()))

    def data(self, name: str, phase: int) -> PhaseData:
        """The sums of one phase."""
        return self.store.data(name, phase)


def size_of(question: SizeQuestion, history: VisibleHistory | None = None, now: float = 0.0) -> SizeAnswer:
    """The answer; `now` in unix seconds. Without `history` nothing is taken from it. Raises InvalidRequest
    naming every bad field, and what is neither given nor known; StoreDown."""
    if found := list(_problems(question)):
        raise InvalidRequest(found)
    notes: list[str] = []
    past, traffic = _history(question, history, now)
    sizing = _sizing(question, past, traffic, notes)
    try:
        answer = _answer(sizing, notes)
    except (ArithmeticError, StatisticsError):  # at the edge of what a float can be
        raise InvalidRequest([COUNTLESS]) from None
    if any((getattr(answer, name) or 0) > MOST_COUNTED for name in COUNTED):
        raise InvalidRequest([COUNTLESS])
    return answer


def _answer(sizing: Sizing, notes: list[str]) -> SizeAnswer:
    effect = sizing.question.effect
    if effect is not None:
        _check_effect(sizing, effect)
        return _size_answer(sizing, effect, sizing.budget, notes)
    budget = sizing.budget
    if budget is None:
        budget = PLANNED
        notes.append(
            f"neither effect nor days nor units given: the smallest effect that {budget:,} units find"
        )
    effect = sizing.smallest(budget)
    return (
        _no_effect_answer(sizing, budget, notes)
        if effect is None
        else _size_answer(sizing, effect, budget, notes)
    )


def is_whole(question: SizeQuestion) -> bool:
    """Whether history has nothing to add to it."""
    kind = question.kind if question.route else _spec(question).kind
    known = question.deviation is not None or _binary(kind)
    traffic = question.units_per_day is not None or not (question.route or question.days)
    return question.baseline is not None and known and traffic


def _problems(question: SizeQuestion) -> Iterator[FieldViolation]:
    if not is_word(question.metric):
        yield FieldViolation("metric", f"must be {WORD_FORM}")
    if question.cap is not None or question.kind is not None:
        yield from cap_problems(_spec(question))
    weights = question.weights
    if weights and not (2 <= len(weights) <= MOST_ARMS and all(w > 0 and math.isfinite(w) for w in weights)):
        text = f"must be two to {MOST_ARMS} numbers above 0, control's first, got {_listed(weights)}"
        yield FieldViolation("weights", text)
    if not 0 < question.alpha <= 0.2:
        yield FieldViolation("alpha", f"must be above 0 and at most 0.2, got {question.alpha:g}")
    elif not question.alpha < question.power <= 0.999:
        text = f"must be above alpha, {question.alpha:g}, and at most 0.999, got {question.power:g}"
        yield FieldViolation("power", text)
    if not 0 < question.enrolment <= 1:
        yield FieldViolation("enrolment", f"must be above 0 and at most 1, got {question.enrolment:g}")
    if question.outcome_share is not None and not 0 < question.outcome_share <= 1:
        text = f"must be above 0 and at most 1, got {question.outcome_share:g}"
        yield FieldViolation("outcome_share", text)
    for field, most in (("units_per_day", MOST_UNITS), ("days", MOST_DAYS), ("units", MOST_UNITS)):
        value = getattr(question, field)
        if value is not None and not 0 < value <= most:
            yield FieldViolation(field, f"must be above 0 and at most {most:,.0f}, got {value:g}")
    yield from _value_problems(question)


def _value_problems(question: SizeQuestion) -> Iterator[FieldViolation]:
    baseline, deviation, effect = question.baseline, question.deviation, question.effect
    if baseline is not None and not math.isfinite(baseline):
        yield FieldViolation("baseline", f"must be a finite number, got {baseline:g}")
    elif baseline is not None and _binary(question.kind) and not 0 <= baseline <= 1:
        yield FieldViolation("baseline", f"of a proportion lies within 0 and 1, got {baseline:g}")
    if effect is not None and (effect == 0 or not math.isfinite(effect)):
        yield FieldViolation("effect", f"must be a finite number other than 0, got {effect:g}")
    if deviation is None:
        return
    if _binary(question.kind):
        yield FieldViolation("deviation", NO_DEVIATION)
    elif not (math.isfinite(deviation) and deviation >= 0):
        yield FieldViolation("deviation", f"must be a finite number above 0, got {deviation:g}")
    elif deviation == 0:
        yield FieldViolation("deviation", NO_SPREAD.format(name=question.metric))
    elif question.cap is not None and deviation > (most := (question.cap - question.least) / 2) > 0:
        text = f"of values between {question.least:g} and {question.cap:g} is at most {most:g}"
        yield FieldViolation("deviation", f"{text}, got {deviation:g}")


def _binary(kind: Kind | None) -> bool:
    return kind is not None and kind.rules.binary


def _listed(weights: tuple[float, ...]) -> str:
    return "/".join(f"{w:g}" for w in weights)


def _spec(question: SizeQuestion) -> MetricSpec:
    number = question.cap is not None or question.deviation is not None
    kind = question.kind or (Kind.MEAN if number else Kind.PROPORTION)
    better = question.higher_is_better
    return MetricSpec(question.metric, kind, better, cap=question.cap, least=question.least)


def _history(
    question: SizeQuestion, history: VisibleHistory | None, now: float
) -> tuple[Past | None, RouteTraffic | None]:
    if history is None or is_whole(question):
        return None, None
    kind = question.kind or (None if question.cap is None else Kind.MEAN)
    past = past_of(history, question.route, question.metric, kind, now)
    if question.units_per_day is not None:
        return past, None
    return past, traffic_of(history, question.route, question.metric, now)


def _sizing(
    question: SizeQuestion, past: Past | None, traffic: RouteTraffic | None, notes: list[str]
) -> Sizing:
    """With what history says in place of what is not given. Raises InvalidRequest for what is not known."""
    spec = _spec(question)
    if past is not None and question.kind is None:
        spec = replace(past.metric, covariate=False)
        if question.cap is not None:
            spec = replace(spec, cap=question.cap, least=question.least)
    metric = ComparedMetric(
        spec.name,
        spec.kind,
        spec.higher_is_better,
        bounds=None if spec.cap is None else (spec.least, spec.cap),
    )
    baseline, spread = _values(question, metric, past, notes)
    if question.units_per_day is None and traffic is not None:
        question = replace(question, units_per_day=traffic.per_day)
        notes.append(f"{traffic.per_day:,.0f} units a day {traffic.source}")
    if question.days is not None and question.units_per_day is None:
        raise invalid(
            "units_per_day", "is not known, and needed with days: no experiment has had it yet; give it"
        )
    control, *others = question.weights or (1.0, 1.0)
    smallest, total = min(others), math.fsum(question.weights or (1.0, 1.0))
    if len(others) > 1:
        notes.append(
            f"{len(others)} arms against control: each is sized at a level of"
            f" {question.alpha / len(others):.3g}, since the first to win must win at that (Holm)"
        )
    both = control + smallest
    answering = _answering(question, spec, past, notes)
    return Sizing(question, metric, baseline, spread, smallest / both, both / total, len(others), answering)


def _answering(question: SizeQuestion, spec: MetricSpec, past: Past | None, notes: list[str]) -> float:
    """The part of the units that has a value."""
    share, source = question.outcome_share, ""
    if share is None and past is not None and past.metric.missing is Unanswered.EXCLUDED:
        share, source = past.answering, f" {past.source}"
    if share is None or share >= 1:
        return 1.0
    notes.append(
        f"{percent(share)} of units have {spec.name}{source}; all units are counted, also the others"
    )
    return share


def _values(
    question: SizeQuestion, metric: ComparedMetric, past: Past | None, notes: list[str]
) -> tuple[float, float | None]:
    """Baseline, and the variance of a unit; None: a proportion's own."""
    proportion, named = metric.kind.rules.binary, metric.name
    baseline, spread = question.baseline, None
    if baseline is None:
        if past is not None:
            baseline = past.value
            notes.append(f"baseline {baseline:.4g} {past.source}")
        elif proportion:
            raise invalid(
                "baseline", f"is not known: no experiment has had {named} yet; what is it in control?"
            )
    if question.deviation is not None and proportion:
        raise invalid("deviation", NO_DEVIATION)
    if question.deviation is not None:
        spread = question.deviation**2
    elif past is not None and (not proportion or (past.metric.covariate and question.baseline is None)):
        spread = past.spread
        notes.append(f"deviation {math.sqrt(spread):.4g} {past.source}{_adjusted(past, metric)}")
        if spread == 0:
            raise invalid("deviation", f"{NO_SPREAD.format(name=named)} ({past.source}); give another")
    elif not proportion:
        text = f"is not known: no experiment has had {named} yet; how much do its units differ?"
        raise invalid("deviation", text)
    if proportion and spread is None and baseline is not None and not 0 <= baseline <= 1:
        raise invalid("baseline", f"of a proportion lies within 0 and 1, got {baseline:g}")
    return math.nan if baseline is None else baseline, spread


def _adjusted(past: Past, metric: ComparedMetric) -> str:
    """What sets the values of then apart from those of the plan."""
    text = "; adjusted by the units' own past" if past.metric.covariate else ""
    then = None if past.metric.cap is None else (past.metric.least, past.metric.cap)
    if then != metric.bounds:
        text += "; its values had no cap" if then is None else f"; its values were capped at {then[1]:g}"
    return text


def _check_effect(sizing: Sizing, effect: float) -> None:
    """Raise InvalidRequest where no unit can have such values."""
    low, high = sizing.metric.range
    reached = sizing.baseline + effect
    if math.isfinite(reached) and not low <= reached <= high:
        name, kind = sizing.metric.name, sizing.metric.kind.value
        made = f"is impossible: {sizing.baseline:g} and {effect:+g} make {reached:g}"
        raise invalid("effect", f"{made}, and the {kind} {name} lies within {low:g} and {high:g}")
    if sizing.spread is None and sizing.baseline in (0.0, 1.0) and reached in (0.0, 1.0):
        raise invalid("effect", "all units of both arms would be alike: one look at a few units shows it")


def _size_answer(sizing: Sizing, effect: float, budget: int | None, notes: list[str]) -> SizeAnswer:
    size, per_day = sizing.size(effect), sizing.per_day
    units = sizing.whole(size.units)
    notes += _second_look(sizing, size, budget)
    return SizeAnswer(
        sizing.baseline,
        sizing.deviation,
        effect,
        sizing.whole(size.fixed),
        units,
        sizing.whole(size.half),
        size.factor,
        sizing.whole(size.least),
        units / per_day if per_day else None,
        sizing.question.units_per_day,
        tuple(notes),
    )


def _no_effect_answer(sizing: Sizing, budget: int, notes: list[str]) -> SizeAnswer:
    """No effect is found in so few units."""
    proportion = sizing.metric.kind.rules.binary
    if proportion and sizing.baseline == (1.0 if sizing.metric.sign > 0 else 0.0):
        raise invalid("baseline", f"is {sizing.baseline:g} already: nothing can be better")
    room = (1 - sizing.baseline if sizing.metric.sign > 0 else sizing.baseline) if proportion else 1.0
    effect = sizing.metric.sign * (room / 2 if proportion else sizing.deviation)
    size = sizing.size(effect)
    least = sizing.whole(size.least)
    days = least / sizing.per_day if sizing.per_day else None
    notes.append(f"no effect is found in {budget:,} units: {_waits(sizing, size)}")
    known = (sizing.baseline, sizing.deviation)
    return SizeAnswer(*known, None, 0, 0, 0, 0.0, least, days, sizing.question.units_per_day, tuple(notes))


def _second_look(sizing: Sizing, size: Size, budget: int | None) -> Iterator[str]:
    units = sizing.whole(size.units)
    if size.units <= size.least:
        yield f"the effect would be clear sooner: {_waits(sizing, size)}"
    if budget is None or units <= budget:
        return
    days = sizing.question.days
    there = (
        f"{days:g} days bring {budget:,}"
        if days and sizing.question.units is None
        else f"{budget:,} are there"
    )
    found = sizing.smallest(budget)
    less = (
        "no effect is found by then"
        if found is None
        else f"the smallest effect found by then is {found:+.3g}"
    )
    yield f"out of reach: {units:,} units are needed, {there}; {less}"


def _waits(sizing: Sizing, size: Size) -> str:
    """What is waited for before there is an interval, with numbers."""
    smaller = min(sizing.share, 1 - sizing.share)
    least, name = sizing.whole(size.least), sizing.metric.name
    bounded = math.isfinite(sum(sizing.metric.range))
    each = RULES.burn_in_units if bounded else RULES.unbounded_units
    if math.ceil(each / smaller - 1e-9) >= size.least:
        why = "" if bounded else f", since {name} has no cap"
        return f"{each} units are needed in each arm{why}, which the smallest has at {least:,} of all"
    events = f"{events_needed(smaller)} ones and as many zeros are needed at this split"
    return f"{events}, which are there at about {least:,} units of all"


@dataclass(frozen=True, slots=True)
class Past:
    """Control's value of a metric in an earlier phase, and the variance of a unit's part in it."""

    place: str
    metric: MetricSpec
    value: float
    spread: float
    units: int
    days: float
    answering: float  # part of the units that has a value

    @property
    def source(self) -> str:
        """Where it comes from."""
        return f"from {self.place}: {counted(self.units, 'unit')} of control, {duration(self.days * DAY)}"


@dataclass(frozen=True, slots=True)
class RouteTraffic:
    """New units a day on a route, by the last week of an earlier phase at most."""

    place: str
    per_day: float
    units: int
    days: float

    @property
    def source(self) -> str:
        """Where it comes from."""
        return f"from {self.place}: {counted(self.units, 'new unit')} in its last {duration(self.days * DAY)}"


def past_of(history: VisibleHistory, route: str, metric: str, kind: Kind | None, now: float) -> Past | None:
    """The last phase whose mature units of control tell of the metric. Raises StoreDown."""
    for experiment, phase in _phases(history, route):
        spec = next((m for m in phase.spec.metrics if m.name == metric and kind in (None, m.kind)), None)
        if spec is not None and (found := _past(history, experiment, phase, spec, now)):
            return found
    return None


def traffic_of(history: VisibleHistory, route: str, metric: str, now: float) -> RouteTraffic | None:
    """Of the last phase that had units; one that had the metric comes first. Raises StoreDown."""
    phases = list(_phases(history, route))
    phases.sort(key=lambda found: metric not in {m.name for m in found[1].spec.metrics})
    found = (_traffic(history, experiment, phase, now) for experiment, phase in phases)
    return next(filter(None, found), None)


def _phases(history: VisibleHistory, route: str) -> Iterator[tuple[Experiment, ExperimentPhase]]:
    """Those on the route, whatever the route if there is none; the last first."""
    found = [
        (experiment, phase)
        for experiment in history.list()
        for phase in experiment.phases
        if route in ("", phase.spec.route) and phase.spec.mode is not Mode.HOLDOUT
    ]
    yield from sorted(found, key=lambda pair: pair[1].started, reverse=True)


def _place(experiment: Experiment, phase: ExperimentPhase) -> str:
    return f"{experiment.resource}, phase {phase.number}"


def _past(
    history: VisibleHistory, experiment: Experiment, phase: ExperimentPhase, spec: MetricSpec, now: float
) -> Past | None:
    buckets = history.data(experiment.name, phase.number).buckets
    mature = mature_buckets(buckets, now, phase.spec.closing)
    metric, control = metric_of(spec), phase.spec.control
    moments = total_moments(mature, control, metric)
    if moments.n < ENOUGH:
        return None
    found = adjusted_estimates(metric, [moments])[0] if metric.covariate else estimate(metric, moments)
    of_control = [b for b in mature if b.arm == control]
    first, last = of_control[0].start, max(b.start + b.seconds for b in of_control)
    days = (last - first) / DAY
    exposed = exposed_units(mature, control)
    return Past(
        _place(experiment, phase),
        spec,
        float(found.value),
        float(found.spread),
        int(moments.n),
        days,
        min(1.0, float(moments.n) / exposed) if exposed else 1.0,
    )


def _traffic(
    history: VisibleHistory, experiment: Experiment, phase: ExperimentPhase, now: float
) -> RouteTraffic | None:
    """By all arms, and as many more as the plan let in fewer than all. None from less than a day."""
    spec = phase.spec
    end = min(now, now if phase.ended is None else phase.ended)
    since = max(phase.started, end - WEEK)
    share = spec.enrolment * (spec.slot[1] - spec.slot[0])
    units = _units(history.data(experiment.name, phase.number).buckets, since, end)
    if end - since < DAY or share <= 0 or units < 1:
        return None
    days = (end - since) / DAY
    return RouteTraffic(_place(experiment, phase), units / days / share, round(units), days)


def _units(buckets: Sequence[TimeBucket], since: float, end: float) -> float:
    """Units exposed between two times; of a bucket that lies across them, in proportion."""
    total = 0.0
    for bucket in buckets:
        until = min(bucket.start + bucket.seconds, end)
        within = until - max(bucket.start, since)
        if within > 0:
            total += bucket.exposed * within / (until - bucket.start)
    return total


def days_text(days: float) -> str:
    """Days, with a fraction where they are few."""
    return f"{days:,.0f}" if days >= 10 else f"{days:.1f}"


def effect_text(answer: SizeAnswer) -> str:
    """The effect in the metric's own units: points of a proportion, whose deviation is its value's."""
    effect, rate = answer.effect or 0.0, answer.baseline
    own = 0 <= rate <= 1 and math.isclose(answer.deviation, math.sqrt(rate * (1 - rate)), abs_tol=1e-12)
    return f"{100 * effect:+.3g} points" if own else f"{effect:+.3g}"


def sentence(question: SizeQuestion, answer: SizeAnswer) -> str:
    """All of it in one."""
    split = "/".join(f"{100 * weight:.4g}" for weight in question.weights)
    traffic = "" if answer.units_per_day is None else f" at {answer.units_per_day:,.0f} units a day"
    share = "" if question.enrolment == 1 else f", {question.enrolment:.3g} of which take part"
    days = "" if answer.days is None else f", about {days_text(answer.days)} days"
    found = effect_text(answer) + (" are" if effect_text(answer).endswith("points") else " is")
    return (
        f"{split}{traffic}{share}: {found} found with {100 * question.power:.4g} % power by"
        f" {answer.units:,} planned units{days}; one look at the end would take {answer.fixed_units:,}"
        f" (x{answer.factor:.2f})"
    )
