"""What a phase sums up: stretches of time, series of numbers, and the row that a unit gives to each of them.

A stretch is never longer than a 24th of the shortest window or a 256th of the phase's age, whichever is
longer (and at most an hour before the phase's age asks for more). So there are at most some thousands of them
in years, and a unit waits little longer than its window to be mature.

A metric reads its outcomes within its own window. Where that is not the plan's, a unit's values are kept
under a key of their own, `NAME@SECONDS`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, assert_never

from sqlalchemy import ColumnElement, Connection, select

from router.errors import ExperimentNotFound
from router.extensions.experiments.model import (
    Aggregate,
    ExperimentPhase,
    Kind,
    MetricSpec,
    SegmentSpec,
    Spec,
    Unanswered,
    within_key,
)
from router.extensions.experiments.stats.moments import Moments, places
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.tables import COLUMNS, PRODUCTS, experiments, from_json, phases
from router.extensions.experiments.times import SlowShare, slow_share
from router.shared.database import Bulk

FIRST_STRETCHES = 512  # stretches of the first width; each doubling of the width adds half as many
HALF_OF_THEM = FIRST_STRETCHES // 2
LEAST_SECONDS, MOST_SECONDS, WINDOW_PARTS = 1.0, 3600.0, 24.0


def first_width(window: float) -> float:
    """Seconds of a phase's first stretches, from its window for outcomes in seconds."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, window / WINDOW_PARTS))


def stretch_number(elapsed: float, width: float) -> int:
    """The stretch that a time is in: seconds since the phase began (0 before that), first width."""
    ordinal = math.floor(max(0.0, elapsed) / width)
    if ordinal < FIRST_STRETCHES:
        return ordinal
    level = (ordinal // HALF_OF_THEM).bit_length() - 1
    return (ordinal >> level) + level * HALF_OF_THEM


def stretch_span(stretch: int, width: float) -> tuple[float, float]:
    """Seconds from the phase's begin to the stretch's, and its length in seconds."""
    level = max(0, stretch // HALF_OF_THEM - 1)
    seconds = width * 2**level
    return (stretch - level * HALF_OF_THEM) * seconds, seconds


def width_of(phase: ExperimentPhase) -> float:
    """Seconds of a phase's first stretches."""
    spec = phase.spec
    windows = [spec.window_of(metric) for metric in (*spec.metrics, *phase.early_guardrails)]
    return phase.width or first_width(min(windows))


SEPARATOR = "\x1f"  # in a series' key, before label and value of a segment
RESPONSES, OUTCOMES = "responses", "outcomes"
EVERYTHING = "*"


class Values(NamedTuple):
    """A unit's outcomes of one name: those that count, and those from before the phase."""

    n: int = 0
    total: float = 0.0
    largest: float = 0.0
    last: float = 0.0
    last_time: float = 0.0
    before_n: int = 0
    before_total: float = 0.0

    def plus(self, value: float, time: float) -> Values:
        """With one more. Of two at the same time the larger one is the last, whatever came first."""
        if self.n == 0:
            return Values(1, value, value, value, time, self.before_n, self.before_total)
        last_time, last = max((self.last_time, self.last), (time, value))
        largest = max(self.largest, value)
        return Values(self.n + 1, self.total + value, largest, last, last_time, *self[5:])


class HasValues(Protocol):
    """What a row is made from."""

    values: dict[str, Values]
    responses: int


Row = tuple[float, ...]
NONE = Values()


class Series(NamedTuple):
    """One of the sums: its key in the table, its columns, the names it reads, and the row of a unit.

    `answers` are names of outcomes, for counting the units that have one of them. Of a series that is `split`
    there are sums by segment, too.
    """

    key: str
    columns: int
    reads: frozenset[str]
    answers: frozenset[str]
    row: Callable[[HasValues], Row | None]
    split: bool = False


def powers(row: Row) -> Row:
    """What a row adds to the sums: its numbers, the products of two of them, and of three (`Moments`)."""
    if len(row) == 1:
        (value,) = row
        return value, value * value, value * value * value
    products = [a * b for i, a in enumerate(row) for b in row[i:]]
    cubes = [a * b * c for i, a in enumerate(row) for j, b in enumerate(row[i:], i) for c in row[j:]]
    return (*row, *products, *cubes)


@lru_cache(maxsize=4096)  # distinct values are few
def segment_suffixes(segments: str) -> tuple[str, ...]:
    """What a series' key gets for the sums of the segments of a unit, from its column `segments`."""
    found = json.loads(segments) if segments else {}
    return tuple(f"{SEPARATOR}{label}{SEPARATOR}{value}" for label, value in found.items())


def split_key(key: str) -> tuple[str, tuple[str, str] | None]:
    """A series' key, and label and value where the sums are of a segment."""
    name, *segment = key.split(SEPARATOR, 2)
    return name, (segment[0], segment[1]) if len(segment) == 2 else None


@dataclass(frozen=True)
class PhaseInfo:
    """A phase's id in the tables, and what its spec asks to be summed up.

    `names` are the keys of its units' values. `readings`: outcome (or `RESPONSES`) -> those of them that it
    counts in, and within how many seconds of a unit's first exposure.
    """

    id: int
    started: float
    window: float
    grace: float
    width: float  # seconds of the first stretches
    names: frozenset[str]
    readings: Mapping[str, tuple[tuple[str, float], ...]]
    covariates: frozenset[str]
    series: tuple[Series, ...]
    segments: tuple[SegmentSpec, ...]

    def stretch(self, time: float) -> int:
        """The stretch of time that a first exposure is in."""
        return stretch_number(time - self.started, self.width)


def info_of(key: int, phase: ExperimentPhase) -> PhaseInfo:
    """From a phase and its id."""
    spec = phase.spec
    series, readings = tuple(_all_series(phase)), _readings(phase)
    return PhaseInfo(
        id=key,
        started=phase.started,
        window=spec.window,
        grace=spec.grace,
        width=width_of(phase),
        names=frozenset(key for found in readings.values() for key, _ in found) - {RESPONSES},
        readings=readings,
        covariates=covariates_of(spec),
        series=series,
        segments=spec.segments,
    )


def covariates_of(spec: Spec) -> frozenset[str]:
    """Names of outcomes whose past is read."""
    metrics = [m for m in spec.metrics if m.covariate]
    ratios = (m.per for m in metrics if m.kind.rules.has_denominator)
    return frozenset(m.name for m in metrics) | {p for p in ratios if p not in (RESPONSES, OUTCOMES)}


def value_key(spec: Spec, name: str, window: float) -> str:
    """What a unit's values are kept under, of outcomes of a name that count for so many seconds."""
    return name if window == spec.window else within_key(name, window)


def _readings(phase: ExperimentPhase) -> dict[str, tuple[tuple[str, float], ...]]:
    spec = phase.spec
    found = {name: {name: spec.window} for name in covariates_of(spec)}
    for metric in (*spec.metrics, *phase.early_guardrails):
        window = spec.window_of(metric)
        per = (metric.per,) if metric.kind.rules.has_denominator and metric.per != OUTCOMES else ()
        times = slow_share(metric.name)
        for name in (*(times.outcomes if times else (metric.name,)), *per):
            found.setdefault(name, {})[value_key(spec, name, window)] = window
    return {name: tuple(of.items()) for name, of in found.items()}


def _all_series(phase: ExperimentPhase) -> Iterator[Series]:
    spec = phase.spec
    for metric in spec.metrics:
        yield _of_metric(metric, spec)._replace(split=metric is spec.primary)
    for metric in phase.early_guardrails:
        yield _of_metric(metric, spec)._replace(key=within_key(metric.name, metric.window))


def _of_metric(metric: MetricSpec, spec: Spec) -> Series:
    window, per = spec.window_of(metric), metric.per
    if (share := slow_share(metric.name)) is not None:
        return _of_slow_share(metric, share, partial(value_key, spec, window=window))
    name = value_key(spec, metric.name, window)
    reads = {name, EVERYTHING} | ({metric.name} if metric.covariate else set())
    match metric.kind:
        case Kind.PROPORTION | Kind.MEAN:
            value = _capped(metric, _value(replace(metric, name=name)))
        case Kind.RATIO:
            per = per if per == OUTCOMES else value_key(spec, per, window)
            value = _ratio(name, per)
            reads.add(name if per == OUTCOMES else per)
        case other:
            assert_never(other)
    before = _capped(metric, _past(metric)) if metric.covariate else None
    zero = metric.missing is Unanswered.ZERO

    def row(unit: HasValues) -> Row | None:
        if not zero and not unit.values.get(name, NONE).n:
            return None
        return value(unit) + before(unit) if before else value(unit)

    columns = metric.kind.rules.columns * (2 if metric.covariate else 1)
    return Series(metric.name, columns, frozenset(reads), frozenset({name}), row)


def _of_slow_share(metric: MetricSpec, share: SlowShare, key: Callable[[str], str]) -> Series:
    """`key`: an outcome -> what a unit's values of it are kept under."""
    zero, outcomes = metric.missing is Unanswered.ZERO, tuple(map(key, share.outcomes))

    def row(unit: HasValues) -> Row | None:
        found = [times.largest for name in outcomes if (times := unit.values.get(name, NONE)).n]
        if not found and not zero:
            return None
        return (float(max(found, default=0.0) > share.seconds),)

    reads = frozenset(outcomes)
    return Series(metric.name, 1, reads | {EVERYTHING}, reads, row)


def _capped(metric: MetricSpec, value: Callable[[HasValues], Row]) -> Callable[[HasValues], Row]:
    if metric.kind.rules.uncappable or metric.cap is None:
        return value
    least, cap = metric.least, metric.cap
    return lambda unit: (min(max(value(unit)[0], least), cap),)


def _value(metric: MetricSpec) -> Callable[[HasValues], Row]:
    name = metric.name
    if metric.combined is Aggregate.MEAN:

        def mean(unit: HasValues) -> Row:
            found = unit.values.get(name, NONE)
            return (found.total / found.n if found.n else 0.0,)

        return mean
    place = {Aggregate.SUM: 1, Aggregate.MAX: 2, Aggregate.LAST: 3}[metric.combined]
    return lambda unit: (unit.values.get(name, NONE)[place],)


def _ratio(name: str, per: str) -> Callable[[HasValues], Row]:
    """Of the keys of numerator and denominator."""
    if per == RESPONSES:
        return lambda unit: (unit.values.get(name, NONE).total, float(unit.responses))
    if per == OUTCOMES:

        def by_outcome(unit: HasValues) -> Row:
            found = unit.values.get(name, NONE)
            return found.total, float(found.n)

        return by_outcome
    return lambda unit: (unit.values.get(name, NONE).total, unit.values.get(per, NONE).total)


def _past(metric: MetricSpec) -> Callable[[HasValues], Row]:
    """The covariate. A unit without a past counts as 0, for a ratio as 0 over 1, so that it has one."""
    name, per = metric.name, metric.per

    def past(unit: HasValues) -> Row:
        found = unit.values.get(name, NONE)
        if metric.kind.rules.has_denominator:
            counts = per in (RESPONSES, OUTCOMES)
            below = float(found.before_n) if counts else unit.values.get(per, NONE).before_total
            return (found.before_total, below) if found.before_n and below else (0.0, 1.0)
        if metric.combined is Aggregate.SUM:
            return (found.before_total,)
        return (found.before_total / found.before_n if found.before_n else 0.0,)

    return past


class PhaseInfos:
    """Phases of experiments that were not deleted. What a phase sums up never changes."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._kept: dict[int, PhaseInfo] = {}

    def named(self, conn: Connection, names: Collection[str]) -> dict[tuple[str, int], PhaseInfo]:
        """(experiment, number) -> phase, of these experiments."""
        rows = self._living(conn, self._bulk.among(experiments.c.name, names))
        return {(row.name, row.number): self._kept[row.id] for row in rows}

    def one(self, conn: Connection, name: str, number: int) -> PhaseInfo:
        """Raises ExperimentNotFound, naming the phases that there are."""
        found = self.named(conn, {name})
        if (name, number) in found:
            return found[name, number]
        if conn.execute(select(experiments.c.id).where(experiments.c.name == name)).scalar() is None:
            raise ExperimentNotFound(name)
        there = ", ".join(str(n) for _, n in sorted(found)) or "none"
        raise ExperimentNotFound(name, f": phase {number} is not there, there are: {there}")

    def by_id(self, conn: Connection, ids: Collection[int]) -> dict[int, PhaseInfo]:
        """Those of these that were not deleted."""
        rows = self._living(conn, self._bulk.among(phases.c.id, ids))
        return {row.id: self._kept[row.id] for row in rows}

    def _living(self, conn: Connection, which: ColumnElement[bool]) -> Sequence[Any]:
        """Ids, names and numbers of phases, which are read where they were not before."""
        found = select(phases.c.id, experiments.c.name, phases.c.number).join_from(phases, experiments)
        rows = conn.execute(found.where(which, experiments.c.name.is_not(None))).all()
        if unread := [row.id for row in rows if row.id not in self._kept]:
            whole = select(phases.c.id, phases.c.number, experiments.c.document, experiments.c.etag)
            here = self._bulk.among(phases.c.id, unread)
            for key, number, document, etag in conn.execute(whole.join_from(phases, experiments).where(here)):
                phase = next(p for p in from_json(document, etag).phases if p.number == number)
                self._kept[key] = info_of(key, phase)
        return rows


@dataclass(frozen=True, slots=True)
class TimeBucket:
    """Sums of the units that were first exposed in a stretch of time.

    `start` is unix seconds. `exposed` is the number of units; `answered` how many have the metric.
    `segments` has the primary metric's sums by label and value of the plan's segments.
    """

    arm: str
    start: float
    seconds: float
    exposed: int
    degraded: int
    answered: Mapping[str, int]  # metric -> units with an outcome
    moments: Mapping[str, Moments]  # metric -> columns as its Metric has them; also `NAME@SECONDS`
    segments: Mapping[tuple[str, str], Moments] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhaseData:
    """Everything a report needs of a phase: read in milliseconds, whatever the number of units."""

    buckets: tuple[TimeBucket, ...]  # by start, then arm
    crossed: int  # units shown more than one arm
    digests: Mapping[str, tuple[str, ...]]  # arm -> distinct adapter/base/router digests, in order
    responses: Mapping[str, int]  # arm -> answers to its units
    peak: float  # largest log evidence of the sample-ratio test so far
    late: int = 0  # outcomes of the plan's metrics that came or happened too late
    unserved: Mapping[str, int] = field(default_factory=dict)
    """Arm -> its requests that ended before their first token."""


Cell = tuple[int, Moments]  # units that answered, and their sums


def read_phase_data(conn: Connection, info: PhaseInfo) -> PhaseData:
    """All sums of a phase."""
    found, sums = _cohorts(conn, info), _sums(conn, info)
    answers, unserved = defaultdict[str, int](int), defaultdict[str, int](int)
    for (_, arm), row in sorted(found.items(), key=lambda item: item[0][1]):
        answers[arm] += row[3]
        unserved[arm] += row[5]
    return PhaseData(
        buckets=tuple(_bucket(info, *place, found[place], sums[place]) for place in sorted(found)),
        crossed=sum(row[2] for row in found.values()),
        digests=_digests(conn, info),
        responses=dict(answers),
        peak=conn.execute(select(phases.c.peak).where(phases.c.id == info.id)).scalar_one(),
        late=sum(row[4] for row in found.values()),
        unserved={arm: n for arm, n in unserved.items() if n},
    )


def _rows(conn: Connection, table: Any, info: PhaseInfo) -> Sequence[Any]:
    query = select(*(c for c in table.c if c.name != "phase"))
    return conn.execute(query.where(table.c.phase == info.id)).all()


def _cohorts(conn: Connection, info: PhaseInfo) -> dict[tuple[int, str], tuple[int, ...]]:
    rows = _rows(conn, tables.cohorts, info)
    return {(stretch, arm): tuple(row) for arm, stretch, *row in rows if row[0]}


def _sums(conn: Connection, info: PhaseInfo) -> Mapping[tuple[int, str], dict[str, Cell]]:
    """Stretch and arm -> cells by key."""
    columns = {series.key: series.columns for series in info.series}
    found: dict[tuple[int, str], dict[str, Cell]] = defaultdict(dict)
    for arm, stretch, key, answered, n, *numbers in _rows(conn, tables.sums, info):
        found[stretch, arm][key] = (answered, _moments(n, numbers, columns[split_key(key)[0]]))
    return found


def _moments(n: int, numbers: Sequence[float], columns: int) -> Moments:
    starts = ((0, 1), (COLUMNS, 2), (COLUMNS + PRODUCTS, 3))
    parts = (tuple(numbers[at : at + len(places(columns, power))]) for at, power in starts)
    return Moments(n, *parts)


def _bucket(
    info: PhaseInfo, stretch: int, arm: str, cohort: Sequence[int], sums: Mapping[str, Cell]
) -> TimeBucket:
    offset, seconds = stretch_span(stretch, info.width)
    cells = {s.key: sums.get(s.key) or (0, Moments.empty(s.columns)) for s in info.series}
    names = [s.key for s in info.series]
    return TimeBucket(
        arm,
        info.started + offset,
        seconds,
        exposed=cohort[0],
        degraded=cohort[1],
        answered={name: cells[name][0] for name in names},
        moments={name: cells[name][1] for name in names},
        segments=_segments(info, sums),
    )


def _segments(info: PhaseInfo, sums: Mapping[str, Cell]) -> dict[tuple[str, str], Moments]:
    if not info.segments:
        return {}
    found = ((split_key(key)[1], moments) for key, (_, moments) in sorted(sums.items()))
    return {segment: moments for segment, moments in found if segment and moments.n}


def _digests(conn: Connection, info: PhaseInfo) -> dict[str, tuple[str, ...]]:
    of = tables.digests.c
    found: dict[str, tuple[str, ...]] = {}
    query = select(of.arm, of.digest).where(of.phase == info.id).order_by(of.place)
    for arm, digest in conn.execute(query):
        found[arm] = (*found.get(arm, ()), digest)
    return dict(sorted(found.items()))
