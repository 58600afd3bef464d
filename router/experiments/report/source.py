"""What one phase of an experiment has in the store, what it is judged by, and which part may be judged.

Sums of buckets are of all units or of those that are mature. Rows of numbers are added by numpy, so that a
year of buckets costs milliseconds. A bandit's weights are read from the audit trail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from router.errors import FieldViolation, InvalidRequest
from router.experiments.model import Aggregate, AuditEntry, Experiment, MetricSpec, Mode, Phase, Spec
from router.experiments.stats import Guardrail, Kind, Metric, Moments, Plan
from router.experiments.stats.moments import Array, places
from router.experiments.store.port import Bucket, PhaseData, Store
from router.experiments.verdict import Design

SETTLED = (Aggregate.LAST,)
"""The next outcome may take a unit's value back altogether: it is read once its window is over."""
REWEIGHT = "reweight"


@dataclass(frozen=True)
class Source:
    """A phase's sums. `triggered`, of router experiments, is of units for which the routers differed."""

    experiment: Experiment
    phase: Phase
    data: PhaseData
    triggered: PhaseData | None
    now: float

    @property
    def spec(self) -> Spec:
        """What the phase was run by."""
        return self.phase.spec

    @cached_property
    def design(self) -> Design:
        """What it is judged by."""
        return design_of(self.spec)

    @cached_property
    def mature(self) -> tuple[Bucket, ...]:
        """Buckets of units that had their whole window."""
        return mature_buckets(self.data.buckets, self.now, self.spec.closing)

    @cached_property
    def deciding(self) -> tuple[Bucket, ...]:
        """Mature buckets that the primary metric is read from: those of units that could differ."""
        if self.triggered is None:
            return self.mature
        return mature_buckets(self.triggered.buckets, self.now, self.spec.closing)

    def outcomes(self) -> dict[str, dict[str, Moments]]:
        """Arm, then metric, to the sums that `judge` takes.

        Guardrails are read from all units so far, so that harm is stopped before a window has passed: all
        arms are equally young. But a last value, which the next outcome takes back, is of mature units.
        """
        design, rails = self.design, zip(self.spec.guardrails, self.design.guardrails, strict=True)
        read = {design.primary: self.deciding}
        read |= {g.metric: self.mature if s.aggregate in SETTLED else self.data.buckets for s, g in rails}
        return {
            arm: {metric.name: total_moments(buckets, arm, metric) for metric, buckets in read.items()}
            for arm in design.weights
        }


def is_router_experiment(spec: Spec) -> bool:
    """Whether the arms are router configurations."""
    return any(arm.router is not None for arm in spec.arms)


def phase_of(experiment: Experiment, number: int) -> Phase | None:
    """The phase asked for, 0 the last one; None before the start. Raises InvalidRequest for another one."""
    if number == 0:
        return experiment.phase
    found = next((p for p in experiment.phases if p.number == number), None)
    if found is None:
        there = ", ".join(str(p.number) for p in experiment.phases) or "none, it was not started"
        raise InvalidRequest([FieldViolation("phase", f"there is no phase {number}; there are: {there}")])
    return found


def gather(store: Store, experiment: Experiment, phase: Phase, now: float) -> Source:
    """Read the sums of a phase. Raises StoreDown."""
    name = experiment.name
    routers = is_router_experiment(phase.spec) and phase.spec.mode is not Mode.SHADOW
    triggered = store.triggered(name, phase.number) if routers else None
    return Source(experiment, phase, store.data(name, phase.number), triggered, now)


def metric_of(spec: MetricSpec) -> Metric:
    """The metric of the statistics."""
    bounds = None if spec.cap is None else (spec.least, spec.cap)
    return Metric(spec.name, spec.kind, spec.higher_is_better, spec.covariate, bounds)


def plan_of(spec: Spec) -> Plan:
    """Error rate and size."""
    return Plan(alpha=spec.alpha, units=spec.planned_units)


def design_of(spec: Spec) -> Design:
    """The design by which an experiment is judged."""
    return Design(
        control=spec.control,
        weights={arm.name: arm.weight for arm in spec.arms},
        primary=metric_of(spec.primary),
        guardrails=tuple(Guardrail(metric_of(g), g.margin, g.relative) for g in spec.guardrails),
        margin=spec.margin,
        plan=plan_of(spec),
        min_units=spec.min_units,
        min_matured=spec.min_matured,
    )


def mature_buckets(buckets: Iterable[Bucket], now: float, window: float) -> tuple[Bucket, ...]:
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


def moments_by_bucket(buckets: Sequence[Bucket], arm: str, metric: Metric) -> list[Moments]:
    """The sums of one arm and metric, bucket by bucket; empty ones for other arms' buckets."""
    empty = Moments.empty(metric.columns)
    return [b.moments.get(metric.name, empty) if b.arm == arm else empty for b in buckets]


def total_moments(buckets: Sequence[Bucket], arm: str, metric: Metric) -> Moments:
    """The sums of one arm and metric over all buckets."""
    return usable_moments(
        metric,
        moments_of_row(
            rows_of(moments_by_bucket(buckets, arm, metric), metric.columns).sum(axis=0), metric.columns
        ),
    )


def usable_moments(metric: Metric, sums: Moments) -> Moments:
    """A ratio whose denominator is still 0 has no value: then as if there were no units yet."""
    if metric.kind is Kind.RATIO and any(sums.sums[i] == 0 for i in range(1, metric.columns, 2)):
        return Moments.empty(metric.columns)
    return sums


def length_moments(buckets: Iterable[Bucket], arm: str) -> Moments | None:
    """The columns (value, length) of an arm; None where the store has none."""
    found = [b.lengths for b in buckets if b.arm == arm and b.lengths is not None]
    return moments_of_row(rows_of(found, 2).sum(axis=0), 2) if found else None


def exposed_units(buckets: Iterable[Bucket], arm: str) -> int:
    """Units of an arm."""
    return sum(b.exposed for b in buckets if b.arm == arm)


def answered_units(buckets: Iterable[Bucket], arm: str, metric: str) -> int:
    """Units of an arm that have an outcome of the metric."""
    return sum(b.answered.get(metric, 0) for b in buckets if b.arm == arm)


def latest_weights(trail: Iterable[AuditEntry], phase: Phase) -> dict[str, float]:
    """Weights of the last epoch that has some; empty before the second."""
    return max(reweightings(trail, phase), key=lambda entry: entry[0], default=(0, {}))[1]


def reweightings(trail: Iterable[AuditEntry], phase: Phase) -> Iterator[tuple[int, dict[str, float]]]:
    """Epochs of a phase with weights for just its arms, as they were written."""
    arms = {arm.name for arm in phase.spec.arms}
    for entry in trail:
        detail = entry.detail
        epoch, said = detail.get("epoch"), detail.get("weights")
        if entry.act != REWEIGHT or detail.get("phase") != phase.number or not isinstance(epoch, int | float):
            continue
        if isinstance(said, Mapping) and set(said) == arms:
            yield int(epoch), {str(arm): float(weight) for arm, weight in said.items()}
