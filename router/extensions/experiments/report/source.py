"""What one phase of an experiment has in the store, what it is judged by, and whether it may be believed.

Sums of time buckets are of all units or of those that are mature. numpy adds rows of numbers, so a year of
buckets costs milliseconds.

The checks ask: did what was tested change while it was tested? The sample ratio is tested over time: its
evidence after every bucket, and the shares at which it raises its alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.model import (
    Experiment,
    ExperimentPhase,
    MetricSpec,
    Mode,
    Spec,
    Unanswered,
    within_key,
)
from router.extensions.experiments.report.model import PipelineCheck
from router.extensions.experiments.stats.checks import (
    EARLY_PART,
    Guardrail,
    SampleRatio,
    arm_term,
    maturity,
    sample_ratio,
    total_term,
)
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.missing import Missing, Response, missing_outcomes
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, places
from router.extensions.experiments.verdict import CROSSED, Course, ExperimentDesign, PipelineHealth
from router.extensions.experiments.words import window_in_words
from router.quantities import percent

if TYPE_CHECKING:  # SQLAlchemy, which planning needs no more than clients do
    from router.extensions.experiments.store.series import PhaseData, TimeBucket
    from router.extensions.experiments.store.store import ExperimentStore


@dataclass(frozen=True)
class PhaseEvidence:
    """A phase's sums."""

    experiment: Experiment
    phase: ExperimentPhase
    data: PhaseData
    now: float

    @property
    def spec(self) -> Spec:
        """What the phase was run by."""
        return self.phase.spec

    @cached_property
    def design(self) -> ExperimentDesign:
        """What it is judged by."""
        return design_of(self.spec, self.phase.early_guardrails)

    @cached_property
    def mature(self) -> tuple[TimeBucket, ...]:
        """Buckets of units that had their whole window."""
        return mature_buckets(self.data.buckets, self.now, self.spec.closing)

    @cached_property
    def ages(self) -> dict[str, float]:
        """Metric, `NAME@SECONDS` for an early reading -> seconds after which a unit's value is final.

        Outcomes may come sooner in one arm than in another, so arms of equal age are not equally complete:
        every metric is read from units whose values are final. A built-in one is final when its answers have
        ended, which an early reading makes use of.
        """
        spec = self.spec
        found = {metric.name: spec.closing_of(metric) for metric in spec.metrics}
        early = zip(self.design.early, self.phase.early_guardrails, strict=True)
        return found | {rail.metric.name: read.window for rail, read in early}

    def older(self, seconds: float) -> tuple[TimeBucket, ...]:
        """Buckets of units that are older."""
        if seconds == self.spec.closing:
            return self.mature
        return mature_buckets(self.data.buckets, self.now, seconds)

    def outcomes(self) -> dict[str, dict[str, Moments]]:
        """Arm, then metric, to the sums that `judge` takes: of units whose values are final."""
        design = self.design
        read = {design.primary: self.mature}
        rails = (rail.metric for rail in (*design.guardrails, *design.early))
        read |= {metric: self.older(self.ages[metric.name]) for metric in rails}
        return {
            arm: {metric.name: total_moments(buckets, arm, metric) for metric, buckets in read.items()}
            for arm in design.weights
        }


def phase_of(experiment: Experiment, number: int) -> ExperimentPhase | None:
    """The phase asked for, 0 the last one; None before the start. Raises InvalidRequest for another one."""
    if number == 0:
        return experiment.phase
    found = next((p for p in experiment.phases if p.number == number), None)
    if found is None:
        there = ", ".join(str(p.number) for p in experiment.phases) or "none, it was not started"
        raise InvalidRequest([FieldViolation("phase", f"there is no phase {number}; there are: {there}")])
    return found


def gather(
    store: ExperimentStore, experiment: Experiment, phase: ExperimentPhase, now: float
) -> PhaseEvidence:
    """Read the sums of a phase. Raises StoreDown."""
    return PhaseEvidence(experiment, phase, store.data(experiment.name, phase.number), now)


def metric_of(spec: MetricSpec) -> ComparedMetric:
    """The metric of the statistics."""
    bounds = None if spec.cap is None else (spec.least, spec.cap)
    return ComparedMetric(spec.name, spec.kind, spec.higher_is_better, spec.covariate, bounds)


def early_metric(spec: MetricSpec) -> ComparedMetric:
    """The metric of an early reading: its name is the key of its sums."""
    return replace(metric_of(spec), name=within_key(spec.name, spec.window))


def plan_of(spec: Spec) -> SequencePlan:
    """Error rate and size."""
    return SequencePlan(alpha=spec.alpha, units=spec.planned_units)


def design_of(spec: Spec, early: Sequence[MetricSpec] = ()) -> ExperimentDesign:
    """The design by which an experiment is judged; `early` are the guardrails of its phase that are read
    early."""
    parts = {rail.name: 1 - EARLY_PART for rail in early}
    return ExperimentDesign(
        control=spec.control,
        weights={arm.name: arm.weight for arm in spec.arms},
        primary=metric_of(spec.primary),
        guardrails=tuple(
            Guardrail(metric_of(g), g.margin, g.relative, g.improve, parts.get(g.name, 1.0))
            for g in spec.guardrails
        ),
        early=tuple(Guardrail(early_metric(g), g.margin, g.relative, part=EARLY_PART) for g in early),
        margin=spec.margin,
        plan=plan_of(spec),
        min_units=spec.min_units,
        min_matured=spec.min_matured,
    )


def mature_buckets(buckets: Iterable[TimeBucket], now: float, window: float) -> tuple[TimeBucket, ...]:
    """Buckets of which even the last unit's window is over."""
    return tuple(b for b in buckets if b.start + b.seconds + window <= now)


def rows_of(found: Sequence[Moments], columns: int) -> Array:
    """[buckets, 1 + columns + products + cubes]: units, sums, sums of products of two and of three."""
    unknown = (math.nan,) * len(places(columns, 3))
    table = np.array([(m.n, *m.sums, *m.products, *(m.cubes or unknown)) for m in found], np.float64)
    return table.reshape(len(found), 1 + sum(len(places(columns, power)) for power in (1, 2, 3)))


def moments_of_row(row: Array, columns: int) -> Moments:
    """A row back as sums."""
    n, *values = (float(value) for value in row)
    products, cubes = columns, columns + len(places(columns, 2))
    known = not any(map(math.isnan, values[cubes:]))
    return Moments(
        int(n),
        tuple(values[:products]),
        tuple(values[products:cubes]),
        tuple(values[cubes:]) if known else (),
    )


def moments_by_bucket(buckets: Sequence[TimeBucket], arm: str, metric: ComparedMetric) -> list[Moments]:
    """The sums of one arm and metric, bucket by bucket; empty ones for other arms' buckets."""
    empty = Moments.empty(metric.columns)
    return [b.moments.get(metric.name, empty) if b.arm == arm else empty for b in buckets]


def total_moments(buckets: Sequence[TimeBucket], arm: str, metric: ComparedMetric) -> Moments:
    """The sums of one arm and metric over all buckets."""
    return usable_moments(
        metric,
        moments_of_row(
            rows_of(moments_by_bucket(buckets, arm, metric), metric.columns).sum(axis=0), metric.columns
        ),
    )


def usable_moments(metric: ComparedMetric, sums: Moments) -> Moments:
    """A ratio whose denominator is still 0 has no value: then as if there were no units yet."""
    if metric.kind.rules.has_denominator and any(sums.sums[i] == 0 for i in range(1, metric.columns, 2)):
        return Moments.empty(metric.columns)
    return sums


def exposed_units(buckets: Iterable[TimeBucket], arm: str) -> int:
    """Units of an arm."""
    return sum(b.exposed for b in buckets if b.arm == arm)


def answered_units(buckets: Iterable[TimeBucket], arm: str, metric: str) -> int:
    """Units of an arm that have an outcome of the metric."""
    return sum(b.answered.get(metric, 0) for b in buckets if b.arm == arm)


PARTS = ("adapter", "base", "router")


def health_of(source: PhaseEvidence, course: Course | None = None) -> PipelineHealth:
    """The checks of a phase, from its sums and their course."""
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    ends = ((b.start + b.seconds, b.exposed) for b in data.buckets)
    return PipelineHealth(
        sample_ratio=ratio_of(data.buckets, weights, data.peak) if _splits(source) else _untested(source),
        maturity=maturity(ends, source.now, spec.closing),
        missing=dict(_missing(source, course or {})),
        crossed=data.crossed / total if total else 0.0,
        mixed=() if spec.mode is Mode.HOLDOUT else changed_parts(data.digests),
    )


def _splits(source: PhaseEvidence) -> bool:
    return source.spec.mode in (Mode.SPLIT, Mode.HOLDOUT)


def _untested(source: PhaseEvidence) -> SampleRatio:
    weights = tuple(source.design.weights.values())
    return sample_ratio([0] * len(weights), weights)


def _missing(source: PhaseEvidence, course: Course) -> Iterator[tuple[str, Missing]]:
    """Arm by arm, over the units that decide. None where a missing outcome counts as 0: then it is one."""
    spec = source.spec
    if spec.primary.missing is Unanswered.ZERO or spec.mode is Mode.SHADOW:
        return
    design = source.design
    for arm in design.treatments:
        both, plan = (_answers(source, spec.control), _answers(source, arm)), design.plan_for(arm)
        looks = course.get(arm, {}).get(design.primary.name)
        yield arm, missing_outcomes(design.primary, *both, plan, design.margin, looks)


def _answers(source: PhaseEvidence, arm: str) -> tuple[Response, Moments]:
    primary, buckets = source.design.primary, source.mature
    response = Response(exposed_units(buckets, arm), answered_units(buckets, arm, primary.name))
    return response, total_moments(buckets, arm, primary)


def checks_of(source: PhaseEvidence, health: PipelineHealth) -> tuple[PipelineCheck, ...]:
    """All checks in words, in the order in which they make a verdict invalid."""
    failed = {fault.rule: fault.text for fault in health.faults()}
    sound = dict(_sound(source, health))
    return tuple(PipelineCheck(name, name in failed, failed.get(name, text)) for name, text in sound.items())


def _sound(source: PhaseEvidence, health: PipelineHealth) -> Iterator[tuple[str, str]]:
    yield "sample-ratio", _ratio_in_words(source, health.sample_ratio)
    yield "missing-outcomes", _missing_in_words(source, health)
    yield "crossed-units", _crossed_in_words(source, health)
    yield "mixed-digests", "adapters, base and router stayed what they were"
    whole = health.maturity
    left = f"{whole.matured:,} of {whole.exposed:,} units had their window of {window_in_words(source.spec)}"
    share, needed = percent(whole.share, 0), percent(source.spec.min_matured, 0)
    yield "maturity", f"{left} ({share}; {needed} are needed to promote)"


def _crossed_in_words(source: PhaseEvidence, health: PipelineHealth) -> str:
    limit = percent(CROSSED, 0)
    return f"{percent(health.crossed)} of units saw more than one arm; more than {limit} is too many"


def _ratio_in_words(source: PhaseEvidence, ratio: SampleRatio) -> str:
    if source.spec.mode is Mode.SHADOW:
        return "not tested: control answers every unit, the other arms answer beside it"
    return ", ".join(
        f"{arm} {got:,} ({wanted:,.0f} expected)"
        for arm, got, wanted in zip(source.design.weights, ratio.counts, ratio.expected, strict=True)
    )


def _missing_in_words(source: PhaseEvidence, health: PipelineHealth) -> str:
    spec = source.spec
    if spec.mode is Mode.SHADOW:
        return "not tested: users answer control only"
    if spec.primary.missing is Unanswered.ZERO:
        return f"a unit without {spec.primary.name} counts as 0, so none is missing"
    shares = [
        f"{percent(found.treatment)} in {arm}, {percent(found.control)} in {spec.control}"
        for arm, found in health.missing.items()
    ]
    return f"without {spec.primary.name}: {'; '.join(shares)}"


def changed_parts(digests: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What changed under a phase, by arm, in words. Of `adapter/base/router` texts, in order of time.

    No adapter is no change of it: the base answered, as an arm does that has none or could not load its
    own.
    """
    return tuple(_changed_parts(digests))


def _changed_parts(digests: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for arm, found in digests.items():
        split = [text.split("/") for text in found]
        for place, part in enumerate(PARTS):
            seen = dict.fromkeys(s[place] for s in split if len(s) > place and s[place])
            if len(seen) > 1:
                yield f"{part} of {arm} ({' -> '.join(map(short_digest, seen))})"


def short_digest(digest: str) -> str:
    """The part of a digest that people compare."""
    return digest[:12] if digest else "none"


# -- Do arms get the shares of units that they should, over time?


def ratio_of(buckets: Sequence[TimeBucket], weights: Mapping[str, float], peak: float = 0.0) -> SampleRatio:
    """The test on all units, with its largest evidence at the end of any bucket or any look before."""
    shares, counts = tuple(weights.values()), _counts(buckets, list(weights))
    ends = _last_of_each(np.array([b.start for b in buckets]))
    path = ratio_evidence(np.cumsum(counts, axis=0)[ends], shares)
    whole = [int(n) for n in counts.sum(axis=0)]
    return sample_ratio(whole, shares, max(peak, float(path.max(initial=0.0))))


def _counts(buckets: Sequence[TimeBucket], arms: Sequence[str]) -> Array:
    """Units, [buckets, arms]."""
    found = [[b.exposed if b.arm == arm else 0 for arm in arms] for b in buckets]
    return np.array(found, np.float64).reshape(len(buckets), len(arms))


def _last_of_each(starts: Array) -> NDArray[np.int64]:
    """Which buckets are the last of their time: between two arms of one bucket nothing is tested."""
    if not len(starts):
        return np.array([], np.int64)
    return np.flatnonzero(np.append(starts[1:] != starts[:-1], True))


def ratio_evidence(counts: Array, weights: Sequence[float]) -> Array:
    """Log evidence, [looks], from units by look and arm, [looks, arms]."""
    found = -total_term(counts.sum(axis=1))
    for i, weight in enumerate(weights):
        found = found + arm_term(counts[:, i], weight)
    return np.asarray(found, np.float64)
