"""What the last experiment on a route tells of a metric and of the route's traffic: to plan the next by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router.experiments.model import Experiment, Kind, MetricSpec, Mode, Phase
from router.experiments.report.notes import count, span
from router.experiments.report.source import mature_buckets, metric_of, total_moments
from router.experiments.stats.moments import adjusted, estimate
from router.experiments.store.port import Bucket, Store

DAY, WEEK = 86_400.0, 604_800.0
ENOUGH = 20
"""Units of control from which a rate or a deviation is told at all."""


@dataclass(frozen=True, slots=True)
class Past:
    """Control's value of a metric in an earlier phase, and the variance of a unit's part in it."""

    place: str
    metric: MetricSpec
    value: float
    spread: float
    units: int
    days: float

    @property
    def told(self) -> str:
        """Where it comes from."""
        return f"from {self.place}: {count(self.units, 'unit')} of control, {span(self.days * DAY)}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """New units a day on a route, by the last week of an earlier phase at most."""

    place: str
    per_day: float
    units: int
    days: float

    @property
    def told(self) -> str:
        """Where it comes from."""
        return f"from {self.place}: {count(self.units, 'new unit')} in its last {span(self.days * DAY)}"


def past_of(store: Store, route: str, metric: str, kind: Kind | None, now: float) -> Past | None:
    """The last phase whose mature units of control tell of the metric. Raises StoreDown."""
    for experiment, phase in _phases(store, route):
        spec = next((m for m in phase.spec.metrics if m.name == metric and kind in (None, m.kind)), None)
        if spec is not None and (found := _past(store, experiment, phase, spec, now)):
            return found
    return None


def traffic_of(store: Store, route: str, metric: str, now: float) -> Traffic | None:
    """Of the last phase that had units; one that had the metric comes first. Raises StoreDown."""
    phases = list(_phases(store, route))
    phases.sort(key=lambda found: metric not in {m.name for m in found[1].spec.metrics})
    found = (_traffic(store, experiment, phase, now) for experiment, phase in phases)
    return next(filter(None, found), None)


def _phases(store: Store, route: str) -> Iterator[tuple[Experiment, Phase]]:
    """Those on the route, whatever the route if there is none; the last first."""
    found = [
        (experiment, phase)
        for experiment in store.list()
        for phase in experiment.phases
        if route in ("", phase.spec.route) and phase.spec.mode is not Mode.HOLDOUT
    ]
    yield from sorted(found, key=lambda pair: pair[1].started, reverse=True)


def _place(experiment: Experiment, phase: Phase) -> str:
    return f"{experiment.resource}, phase {phase.number}"


def _past(store: Store, experiment: Experiment, phase: Phase, spec: MetricSpec, now: float) -> Past | None:
    buckets = store.data(experiment.name, phase.number).buckets
    mature = mature_buckets(buckets, now, phase.spec.closing)
    metric, control = metric_of(spec), phase.spec.control
    moments = total_moments(mature, control, metric)
    if moments.n < ENOUGH:
        return None
    found = adjusted(metric, [moments])[0] if metric.covariate else estimate(metric, moments)
    of_control = [b for b in mature if b.arm == control]
    first, last = of_control[0].start, max(b.start + b.seconds for b in of_control)
    days = (last - first) / DAY
    return Past(
        _place(experiment, phase), spec, float(found.value), float(found.spread), int(moments.n), days
    )


def _traffic(store: Store, experiment: Experiment, phase: Phase, now: float) -> Traffic | None:
    """By all arms, and as many more as the plan let in fewer than all."""
    spec = phase.spec
    end = min(now, now if phase.ended is None else phase.ended)
    since = max(phase.started, end - WEEK)
    share = spec.enrolment * (spec.slot[1] - spec.slot[0])
    units = _units(store.data(experiment.name, phase.number).buckets, since, end)
    if end <= since or share <= 0 or units < 1:
        return None
    days = (end - since) / DAY
    return Traffic(_place(experiment, phase), units / days / share, round(units), days)


def _units(buckets: Sequence[Bucket], since: float, end: float) -> float:
    """Units exposed between two times; of a bucket that lies across them, in proportion."""
    total = 0.0
    for bucket in buckets:
        until = min(bucket.start + bucket.seconds, end)
        within = until - max(bucket.start, since)
        if within > 0:
            total += bucket.exposed * within / (until - bucket.start)
    return total
