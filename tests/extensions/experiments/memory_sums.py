"""What a phase's rows come to, computed from all of them: slow, plain, and without any state."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from router.extensions.experiments.model import (
    BUILT_IN,
    Aggregate,
    ExperimentPhase,
    Exposure,
    MetricSpec,
    Spec,
    StoredOutcome,
    Unanswered,
    within_key,
)
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.store import series
from router.extensions.experiments.store.series import PhaseData, TimeBucket
from router.extensions.experiments.times import UNSERVED, slow_share

Place: TypeAlias = tuple[str, int]  # experiment, phase


@dataclass
class Kept:
    """An outcome, and the units that it is an outcome of."""

    outcome: StoredOutcome
    places: dict[Place, str]


@dataclass
class Rows:
    """What is logged of one phase. `firsts`: the exposure of each unit that was kept first; `past`: what was
    recorded of it by then."""

    exposures: dict[str, Exposure] = field(default_factory=dict)
    firsts: dict[str, Exposure] = field(default_factory=dict)
    segments: dict[str, dict[str, str]] = field(default_factory=dict)
    past: dict[str, list[StoredOutcome]] = field(default_factory=dict)
    peak: float = 0.0


def came_in_time(
    said: StoredOutcome, phase: ExperimentPhase, first: Exposure, window: float | None = None
) -> bool:
    closing = first.time + (phase.spec.window if window is None else window) + phase.spec.grace
    return not said.received or said.received <= closing


def counts(said: StoredOutcome, phase: ExperimentPhase, first: Exposure, window: float | None = None) -> bool:
    end = first.time + (phase.spec.window if window is None else window)
    return said.time <= end and came_in_time(said, phase, first, window)


def windows(phase: ExperimentPhase, name: str) -> list[float]:
    """Those of the metrics that read an outcome."""
    spec = phase.spec
    found = [spec.window] if name in series.covariates_of(spec) else []
    for metric in (*spec.metrics, *phase.early_guardrails):
        share = slow_share(metric.name)
        read = share.outcomes if share else (metric.name,)
        if name in (*read, metric.per if metric.kind.rules.has_denominator else ""):
            found.append(spec.window_of(metric))
    return found


def within(phase: ExperimentPhase, metric: MetricSpec) -> ExperimentPhase:
    """The phase as if a metric's window were the plan's."""
    return replace(phase, spec=replace(phase.spec, window=phase.spec.window_of(metric)))


class Unit:
    """One unit of a phase with its outcomes: those that count, and those from before the phase."""

    def __init__(
        self, phase: ExperimentPhase, place: Place, rows: Rows, first: Exposure, kept: Iterable[Kept]
    ) -> None:
        end = first.time + phase.spec.window
        self.for_metric = lambda m: Unit(within(phase, m), place, rows, first, kept)
        self.window = phase.spec.window
        self.arm, self.segments = first.arm, rows.segments[first.unit]
        self.shown = [e for e in rows.exposures.values() if e.unit == first.unit]
        self.responses = sum(e.time <= end for e in self.shown)
        self.counted: dict[str, list[StoredOutcome]] = defaultdict(list)
        self.before: dict[str, list[float]] = defaultdict(list)
        for said in rows.past[first.unit]:
            self.before[said.metric].append(said.value)
        for found in kept:
            said = found.outcome
            if found.places.get(place) == first.unit and counts(said, phase, first):
                self.counted[said.metric].append(said)

    def answered(self, metric: MetricSpec) -> bool:
        if metric.window not in (0, self.window):
            return self.for_metric(metric).answered(metric)
        return self.has(metric)

    def values(self, name: str) -> list[float]:
        return [o.value for o in self.counted[name]]

    def has(self, metric: MetricSpec) -> bool:
        times = slow_share(metric.name)
        return any(self.counted[name] for name in (times.outcomes if times else (metric.name,)))

    def row(self, metric: MetricSpec) -> tuple[float, ...] | None:
        if metric.window not in (0, self.window):
            return self.for_metric(metric).row(metric)
        if not self.has(metric) and metric.missing is not Unanswered.ZERO:
            return None
        if share := slow_share(metric.name):
            return (float(any(v > share.seconds for name in share.outcomes for v in self.values(name))),)
        if metric.kind.rules.has_denominator:
            now = (sum(self.values(metric.name)), self._denominator(metric))
        else:
            now = self._capped(metric, self._value(metric))
        return (*now, *self._covariate(metric)) if metric.covariate else now

    def _capped(self, metric: MetricSpec, value: float) -> tuple[float]:
        if metric.kind.rules.uncappable or metric.cap is None:
            return (value,)
        return (min(max(value, metric.least), metric.cap),)

    def _value(self, metric: MetricSpec) -> float:
        found = self.values(metric.name)
        if not found:
            return 0.0
        if metric.combined is Aggregate.LAST:
            return max((o.time, o.value) for o in self.counted[metric.name])[1]
        return {
            Aggregate.SUM: sum(found),
            Aggregate.MEAN: sum(found) / len(found),
            Aggregate.MAX: max(found),
        }[metric.combined]

    def _denominator(self, metric: MetricSpec) -> float:
        if metric.per == "responses":
            return float(self.responses)
        found = self.values(metric.name if metric.per == "outcomes" else metric.per)
        return float(len(found)) if metric.per == "outcomes" else sum(found)

    def _covariate(self, metric: MetricSpec) -> tuple[float, ...]:
        found = self.before[metric.name]
        if metric.kind.rules.has_denominator:
            counts = metric.per in ("responses", "outcomes")
            below = float(len(found)) if counts else sum(self.before[metric.per])
            return (sum(found), below) if found and below else (0.0, 1.0)
        if metric.combined is Aggregate.SUM:
            return self._capped(metric, sum(found))
        return self._capped(metric, sum(found) / len(found) if found else 0.0)


def phase_data(phase: ExperimentPhase, place: Place, rows: Rows, kept: Iterable[Kept]) -> PhaseData:
    kept = list(kept)
    units = {name: Unit(phase, place, rows, first, kept) for name, first in rows.firsts.items()}
    shown = [e for e in rows.exposures.values() if e.unit in units]
    digests: dict[str, dict[str, None]] = defaultdict(dict)
    responses: dict[str, int] = defaultdict(int)
    for e in shown:
        responses[units[e.unit].arm] += 1
    for e in rows.exposures.values():
        if not e.degraded:
            digests[e.arm][f"{e.adapter_digest}/{e.base_digest}/{e.router_digest}"] = None
    return PhaseData(
        buckets=tuple(_buckets(phase, rows, units)),
        crossed=sum(len({e.arm for e in unit.shown}) > 1 for unit in units.values()),
        digests={arm: tuple(found) for arm, found in sorted(digests.items())},
        responses=dict(sorted(responses.items())),
        peak=rows.peak,
        unserved=dict(Counter(units[k.places[place]].arm for k in kept if _unserved(k, place))),
        late=_late(phase, place, rows, kept),
    )


def _unserved(kept: Kept, place: Place) -> bool:
    return kept.outcome.metric == UNSERVED and place in kept.places


def _late(phase: ExperimentPhase, place: Place, rows: Rows, kept: Iterable[Kept]) -> int:
    found = 0
    for said, first in ((k.outcome, rows.firsts[k.places[place]]) for k in kept if place in k.places):
        read = windows(phase, said.metric)
        late = bool(read) and not any(counts(said, phase, first, w) for w in read)
        found += late and said.metric not in BUILT_IN
    return found


def _buckets(phase: ExperimentPhase, rows: Rows, units: dict[str, Unit]) -> Iterable[TimeBucket]:
    width = series.width_of(phase)
    groups: dict[tuple[int, str], list[Unit]] = defaultdict(list)
    for name, unit in units.items():
        elapsed = rows.firsts[name].time - phase.started
        groups[series.stretch_number(elapsed, width), unit.arm].append(unit)
    for (stretch, arm), found in sorted(groups.items()):
        offset, seconds = series.stretch_span(stretch, width)
        yield _bucket(phase, arm, (phase.started + offset, seconds), found)


def _bucket(phase: ExperimentPhase, arm: str, span: tuple[float, float], units: list[Unit]) -> TimeBucket:
    spec = phase.spec
    early = {within_key(m.name, m.window): m for m in phase.early_guardrails}
    metrics = {m.name: m for m in spec.metrics} | early
    return TimeBucket(
        arm,
        *span,
        exposed=len(units),
        degraded=sum(any(e.degraded for e in unit.shown) for unit in units),
        answered={key: sum(u.answered(m) for u in units) for key, m in metrics.items()},
        moments={key: _moments(columns_of(m), [u.row(m) for u in units]) for key, m in metrics.items()},
        segments=_segments(spec, units),
    )


def _segments(spec: Spec, units: list[Unit]) -> dict[tuple[str, str], Moments]:
    found: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    for unit in units:
        row = unit.row(spec.primary)
        for segment in unit.segments.items() if row is not None else ():
            found[segment].append(row)
    return {segment: _moments(columns_of(spec.primary), rows) for segment, rows in sorted(found.items())}


def columns_of(metric: MetricSpec) -> int:
    return metric.kind.rules.columns * (2 if metric.covariate else 1)


def _moments(columns: int, rows: Iterable[tuple[float, ...] | None]) -> Moments:
    found = [row for row in rows if row is not None]
    return Moments.of(*zip(*found, strict=True)) if found else Moments.empty(columns)
