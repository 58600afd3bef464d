"""What a phase sums up: stretches of time, series of numbers, and the row that a unit gives to each of them.

A stretch is never longer than a 24th of the window or a 256th of the phase's age, whichever is longer
(and at most an hour before the phase's age asks for more). So there are at most some thousands of them
in years, and a unit waits little longer than its window to be mature. A bandit's stretches are its epochs,
since its weights are others in each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Connection, select, true

from router.experiments.model import (
    BUILT_IN,
    Aggregate,
    Kind,
    MetricSpec,
    Mode,
    Phase,
    SegmentSpec,
    Spec,
    Unanswered,
)
from router.experiments.store.database import Bulk
from router.experiments.store.tables import experiments, from_json, phases

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


class Stretches(NamedTuple):
    """How a phase's time is divided: into epochs of one length, or into stretches that get longer."""

    width: float  # seconds, of the first
    even: bool = False

    def number(self, elapsed: float) -> int:
        """The one that a time is in: seconds since the phase began, 0 before that."""
        return (
            math.floor(max(0.0, elapsed) / self.width) if self.even else stretch_number(elapsed, self.width)
        )

    def span(self, number: int) -> tuple[float, float]:
        """Seconds from the phase's begin to its, and its length in seconds."""
        return (number * self.width, self.width) if self.even else stretch_span(number, self.width)


def stretches_of(spec: Spec) -> Stretches:
    """Of a phase with this spec."""
    return Stretches(spec.epoch, True) if spec.mode is Mode.BANDIT else Stretches(first_width(spec.window))


RESPONSES, OUTCOMES = "responses", "outcomes"
EVERYTHING = "*"
LENGTHS = ""  # the sums of (primary value, mean answer length)
LENGTH = "completion_tokens"


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

    `answers` is the outcome's name, for counting the units that have one. `metric` is what its row is made
    by. Of a series that is `split` there are sums by segment, too.
    """

    key: str
    columns: int
    reads: frozenset[str]
    answers: str
    row: Callable[[HasValues], Row | None]
    metric: MetricSpec
    split: bool = False


def powers(row: Row) -> Row:
    """What a row adds to the sums: its numbers, the products of two of them, and of three (`Moments`)."""
    if len(row) == 1:
        (value,) = row
        return value, value * value, value * value * value
    products = [a * b for i, a in enumerate(row) for b in row[i:]]
    cubes = [a * b * c for i, a in enumerate(row) for j, b in enumerate(row[i:], i) for c in row[j:]]
    return (*row, *products, *cubes)


SEPARATOR = "\x1f"


@lru_cache(maxsize=4096)  # values told apart are few
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
    """A phase's id in the tables, and what its spec asks to be summed up. `title` is for people."""

    id: int
    title: str
    started: float
    window: float
    grace: float
    stretches: Stretches
    names: frozenset[str]
    covariates: frozenset[str]
    series: tuple[Series, ...]
    metrics: tuple[MetricSpec, ...]
    segments: tuple[SegmentSpec, ...]

    def stretch(self, time: float) -> int:
        """The stretch of time that a first exposure is in."""
        return self.stretches.number(time - self.started)


def info_of(key: int, name: str, phase: Phase) -> PhaseInfo:
    """From a phase of the experiment `name`, and its id."""
    spec = phase.spec
    series = tuple(_all_series(spec))
    return PhaseInfo(
        id=key,
        title=f"{name}, phase {phase.number}",
        started=phase.started,
        window=spec.window,
        grace=spec.grace,
        stretches=stretches_of(spec),
        names=frozenset(BUILT_IN).union(*(s.reads for s in series)) - {RESPONSES, EVERYTHING},
        covariates=covariates_of(spec),
        series=series,
        metrics=spec.metrics,
        segments=spec.segments,
    )


def covariates_of(spec: Spec) -> frozenset[str]:
    """Names of outcomes whose past is read."""
    metrics = [m for m in spec.metrics if m.covariate]
    ratios = (m.per for m in metrics if m.kind is Kind.RATIO)
    return frozenset(m.name for m in metrics) | {p for p in ratios if p not in (RESPONSES, OUTCOMES)}


def _all_series(spec: Spec) -> Iterator[Series]:
    for metric in spec.metrics:
        yield _of_metric(metric)._replace(split=metric is spec.primary)
    if spec.primary.kind is not Kind.RATIO:
        yield _lengths(_of_metric(spec.primary))


def _of_metric(metric: MetricSpec) -> Series:
    value = _ratio(metric) if metric.kind is Kind.RATIO else _capped(metric, _value(metric))
    before = _capped(metric, _past(metric)) if metric.covariate else None
    zero, name = metric.missing is Unanswered.ZERO, metric.name

    def row(unit: HasValues) -> Row | None:
        if not zero and not unit.values.get(name, NONE).n:
            return None
        return value(unit) + before(unit) if before else value(unit)

    ratio = metric.kind is Kind.RATIO
    columns = (2 if ratio else 1) * (2 if metric.covariate else 1)
    below = {name if metric.per == OUTCOMES else metric.per} if ratio else set()
    plain = replace(metric, margin=0.0, relative=False, higher_is_better=True)
    return Series(name, columns, frozenset({name, EVERYTHING} | below), name, row, plain)


def _capped(metric: MetricSpec, value: Callable[[HasValues], Row]) -> Callable[[HasValues], Row]:
    if metric.kind is not Kind.MEAN or metric.cap is None:
        return value
    least, cap = metric.least, metric.cap
    return lambda unit: (min(max(value(unit)[0], least), cap),)


def _value(metric: MetricSpec) -> Callable[[HasValues], Row]:
    name = metric.name
    if metric.aggregate is Aggregate.MEAN:

        def mean(unit: HasValues) -> Row:
            found = unit.values.get(name, NONE)
            return (found.total / found.n if found.n else 0.0,)

        return mean
    place = {Aggregate.SUM: 1, Aggregate.MAX: 2, Aggregate.LAST: 3}[metric.aggregate]
    return lambda unit: (unit.values.get(name, NONE)[place],)


def _ratio(metric: MetricSpec) -> Callable[[HasValues], Row]:
    name, per = metric.name, metric.per
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
        if metric.kind is Kind.RATIO:
            counts = per in (RESPONSES, OUTCOMES)
            below = float(found.before_n) if counts else unit.values.get(per, NONE).before_total
            return (found.before_total, below) if found.before_n and below else (0.0, 1.0)
        if metric.aggregate is Aggregate.SUM:
            return (found.before_total,)
        return (found.before_total / found.before_n if found.before_n else 0.0,)

    return past


def _lengths(primary: Series) -> Series:
    def row(unit: HasValues) -> Row | None:
        found = unit.values.get(LENGTH, NONE)
        value = primary.row(unit) if found.n else None
        return (value[0], found.total / found.n) if value else None

    return Series(LENGTHS, 2, primary.reads | {LENGTH}, LENGTH, row, primary.metric)


_LIVING = experiments.c.name.is_not(None)


class Phases:
    """Phases as their experiments have them now. What was read is kept as long as the etag is the same:
    another server may have changed a phase's secondary metrics."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._kept: dict[int, tuple[str, PhaseInfo]] = {}

    def named(self, conn: Connection, names: Collection[str]) -> dict[tuple[str, int], PhaseInfo]:
        """(experiment, number) -> phase, of these experiments."""
        rows = self._living(conn, self._bulk.among(experiments.c.name, names))
        infos = self._read(conn, rows)
        return {(row.name, row.number): infos[row.id] for row in rows}

    def by_id(self, conn: Connection, ids: Collection[int]) -> dict[int, PhaseInfo]:
        """Those of these that were not deleted."""
        return self._read(conn, self._living(conn, self._bulk.among(phases.c.id, ids)))

    def with_past(self, conn: Connection) -> list[PhaseInfo]:
        """Those that read what was before them."""
        return list(self._read(conn, self._living(conn, phases.c.covariates != "[]")).values())

    def all(self, conn: Connection) -> list[PhaseInfo]:
        """Of all experiments."""
        return list(self._read(conn, self._living(conn, true())).values())

    def _living(self, conn: Connection, which: ColumnElement[bool]) -> Sequence[Any]:
        found = select(phases.c.id, experiments.c.name, phases.c.number, experiments.c.etag)
        return conn.execute(found.join_from(phases, experiments).where(which, _LIVING)).all()

    def _read(self, conn: Connection, rows: Sequence[Any]) -> dict[int, PhaseInfo]:
        known = {row.id: self._kept[row.id] for row in rows if row.id in self._kept}
        if unread := [row.id for row in rows if row.id not in known or known[row.id][0] != row.etag]:
            found = select(phases.c.id, phases.c.number, experiments.c.document, experiments.c.etag)
            here = self._bulk.among(phases.c.id, unread)
            for key, number, document, etag in conn.execute(found.join_from(phases, experiments).where(here)):
                experiment = from_json(document, etag)
                phase = next(p for p in experiment.phases if p.number == number)
                known[key] = self._kept[key] = etag, info_of(key, experiment.name, phase)
        return {key: info for key, (_, info) in known.items()}
