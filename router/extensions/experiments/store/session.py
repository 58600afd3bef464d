"""One writing transaction: the units it touches, read once and written once, with the sums they change.

One writer at a time: SQLite has no other way, PostgreSQL takes an advisory lock. So what is read stays true
until the commit, an outcome cannot slip past its exposure, and two servers cannot wait for each other. What
a batch changes in the sums is collected unit by unit, and added in the database in one statement each.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select

from router.extensions.experiments.model import BUILT_IN, Exposure
from router.extensions.experiments.store.series import (
    EVERYTHING,
    NONE,
    RESPONSES,
    SEPARATOR,
    PhaseInfo,
    PhaseInfos,
    Row,
    Series,
    Values,
    powers,
    segment_suffixes,
)
from router.extensions.experiments.store.tables import (
    COLUMNS,
    CUBES,
    PRODUCTS,
    UNPLANNED,
    WAITING,
    built_in,
    cohorts,
    exposures,
    outcomes,
    sums,
    units,
    values,
)
from router.shared.database import Bulk, Clash

log = logging.getLogger(__name__)
Cells: TypeAlias = tuple[object, ...]


class WriteSession:
    """Units by id and by (phase, unit). `add` and `find` before changes, `load` values, `finish`."""

    def __init__(self, conn: Connection, bulk: Bulk, phases: PhaseInfos) -> None:
        self.conn, self.bulk, self.phases = conn, bulk, phases
        self.units: dict[int, Unit] = {}
        self.named: dict[tuple[int, str], Unit] = {}
        self._next = 0

    def find(self, wanted: Iterable[tuple[PhaseInfo, str]]) -> None:
        """Read units by phase and name, as far as they are there."""
        by_phase: dict[int, tuple[PhaseInfo, set[str]]] = {}
        for info, name in wanted:
            if (info.id, name) not in self.named:
                by_phase.setdefault(info.id, (info, set()))[1].add(name)
        for info, names in by_phase.values():
            self._read({info.id: info}, units.c.phase == info.id, self.bulk.among(units.c.unit, names))

    def find_ids(self, ids: Collection[int]) -> None:
        """Read units by id; those of deleted experiments are left out."""
        if unread := set(ids) - self.units.keys():
            here = self.bulk.among(units.c.id, unread)
            of = self.conn.execute(select(units.c.phase).where(here).distinct()).scalars().all()
            self._read(self.phases.by_id(self.conn, of), here)

    def _read(self, infos: dict[int, PhaseInfo], *which: ColumnElement[bool]) -> None:
        for row in self.conn.execute(select(units).where(*which)):
            if row.phase in infos and row.id not in self.units:
                self._keep(unit_from_row(infos[row.phase], row)).remember()

    def _keep(self, unit: Unit) -> Unit:
        self.units[unit.id] = self.named[unit.info.id, unit.unit] = unit
        return unit

    def add(self, info: PhaseInfo, first: Exposure, segments: str) -> Unit:
        """A new unit, by its first exposure and its column `segments`."""
        if not self._next:
            self._next = self.conn.execute(select(func.coalesce(func.max(units.c.id), 0))).scalar_one()
        self._next += 1
        stretch = info.stretch(first.time)
        place = (self._next, info, first.unit, first.arm, first.time, stretch)
        return self._keep(Unit(*place, segments=segments))

    def load(self, changing: Collection[str]) -> None:
        """Read the values that sums are made of which read any of `changing`. Once, before any changes."""
        known = {key: unit for key, unit in self.units.items() if unit.old is not None}
        infos = {unit.info.id: unit.info for unit in known.values()}
        self.read_values(known, {n for info in infos.values() for n in _needed(info, frozenset(changing))})
        for unit in known.values():
            if unit.old is not None:
                unit.old.values.update(unit.values)

    def read_values(self, of: Mapping[int, Unit], names: Collection[str]) -> None:
        """Those of some names, into units by id."""
        if of and names:
            which = [self.bulk.among(values.c.unit_id, of), self.bulk.among(values.c.metric, names)]
            for key, metric, *rest in self.conn.execute(select(values).where(*which)):
                of[key].values[metric] = Values(*rest)

    def write_units(self) -> None:
        """Before anything looks for them in the tables."""
        rows = (unit_row(u) for u in self.units.values() if u.dirty)
        self.bulk.write(self.conn, units, rows, Clash.REPLACE)

    def finish(self) -> None:
        """Write values and sums."""
        found = Deltas().collect(self.units.values())
        self.bulk.write(self.conn, values, self._values(), Clash.REPLACE)
        self.bulk.write(self.conn, cohorts, found.cohorts(), Clash.ADD)
        self.bulk.write(self.conn, sums, found.sums(), Clash.ADD)
        self.bulk.write(self.conn, built_in, found.built_in(), Clash.ADD)

    def _values(self) -> Iterator[tuple[int | str | float, ...]]:
        for unit in self.units.values():
            for name in unit.changed & unit.values.keys():
                yield (unit.id, name, *unit.values[name])


def _needed(info: PhaseInfo, outcomes: frozenset[str]) -> frozenset[str]:
    if EVERYTHING in outcomes:
        return info.names
    changing = outcomes.union(key for name in outcomes for key, _ in info.readings.get(name, ()))
    reads = (s.reads for s in info.series if not s.reads.isdisjoint(changing))
    return (changing | frozenset().union(*reads)) & info.names


def unit_row(u: Unit) -> tuple[int | str | float | bool, ...]:
    """A unit's row of `units`."""
    place = (u.id, u.unit, u.info.id, u.arm, u.first, u.stretch)
    return (*place, u.answers, u.responses, u.degraded, u.crossed, u.segments)


def unit_from_row(info: PhaseInfo, row: Any) -> Unit:
    """From a row of `units`."""
    key, name, _, *rest = row
    return Unit(key, info, name, *rest)


class Address(NamedTuple):
    """Which sums a unit is in: phase, arm, stretch of time."""

    phase: int
    arm: str
    stretch: int


@dataclass(slots=True)
class Unit:
    """A row of `units` with its rows of `values`. `old` is what it was; None if it is new.

    `changed` names the outcomes that changed it, so that only the sums that read them are made anew.
    """

    id: int
    info: PhaseInfo
    unit: str
    arm: str
    first: float
    stretch: int
    answers: int = 0
    responses: int = 0
    degraded: bool = False
    crossed: bool = False
    segments: str = ""
    values: dict[str, Values] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    aside: dict[str, int] = field(default_factory=dict)  # new outcomes that are in no sum, by why
    dirty: bool = False
    old: Unit | None = None

    def remember(self) -> Unit:
        """Keep what it is now as what it was. `old` gets its values when they are read."""
        place = (self.id, self.info, self.unit, self.arm, self.first, self.stretch)
        flags = (self.degraded, self.crossed)
        self.old = Unit(*place, self.answers, self.responses, *flags, self.segments)
        return self

    @property
    def address(self) -> Address:
        """Where it counts."""
        return Address(self.info.id, self.arm, self.stretch)

    def in_time(self, window: float, received: float) -> bool:
        """Whether what came then came in time for a window (0: it came at once)."""
        return not received or received <= self.first + window + self.info.grace

    def in_window(self, window: float, time: float, received: float = 0.0) -> bool:
        """Whether it happened within a window and came in time: then a unit may be judged when both are
        over, and nothing changes it."""
        return time <= self.first + window and self.in_time(window, received)

    def shown(self, arm: str, time: float, degraded: bool) -> None:
        """One more answer to it."""
        self.answers += 1
        self.dirty = True
        self.degraded |= degraded
        self.crossed |= arm != self.arm
        if self.in_window(self.info.window, time):
            self.responses += 1
            self.changed.add(RESPONSES)
        self.count(RESPONSES, 1.0, time)

    def counts(self, metric: str, time: float, received: float) -> bool:
        """Whether an outcome is not late for all that reads it."""
        readings = self.info.readings.get(metric, ((metric, self.info.window),))
        return any(self.in_window(window, time, received) for _, window in readings)

    def count(self, metric: str, value: float, time: float, received: float = 0.0) -> None:
        """One more outcome, under each key whose window it is in."""
        for key, window in self.info.readings.get(metric, ()):
            if key != RESPONSES and self.in_window(window, time, received):
                self.values[key] = self.values.get(key, NONE).plus(value, time)
                self.changed.add(key)

    def set_aside(self, why: str) -> None:
        """One more outcome that is in no sum."""
        self.aside[why] = self.aside.get(why, 0) + 1

    def recall(self, metric: str, value: float, received: float) -> None:
        """One more outcome from before the phase; nothing if it came too late to count."""
        if metric in self.info.covariates and self.in_time(self.info.window, received):
            found = self.values.get(metric, Values())
            total = found.before_total + value
            self.values[metric] = found._replace(before_n=found.before_n + 1, before_total=total)
            self.changed.add(metric)


class Deltas:
    """Differences by address: of `cohorts`, of `sums` and of `built_in`."""

    def __init__(self) -> None:
        self._cohorts: dict[Address, list[int]] = {}
        self._sums: dict[tuple[Address, str], list[float]] = {}
        self._columns: dict[tuple[Address, str], int] = {}
        self._built_in: dict[tuple[int, str, str], list[float]] = {}

    def collect(self, units: Iterable[Unit]) -> Deltas:
        """Add what these became and take away what they were."""
        for unit in units:
            if unit.old is None:
                unit.changed.add(EVERYTHING)
            if unit.dirty:
                self.add_cohort(unit)
            if unit.changed:
                self._series(unit)
                self._means(unit)
            for why, n in unit.aside.items():
                self._built_in.setdefault((unit.info.id, unit.arm, why), [0, 0.0])[0] += n
        return self

    def add_cohort(self, unit: Unit) -> None:
        """Count it where it is now, and no more where it was."""
        for sign, found in ((-1, unit.old), (1, unit)):
            if found is not None:
                cell = self._cohorts.setdefault(found.address, [0, 0, 0, 0])
                for i, n in enumerate((1, found.degraded, found.crossed, found.answers)):
                    cell[i] += sign * n

    def _series(self, unit: Unit) -> None:
        changed = [series for series in unit.info.series if not series.reads.isdisjoint(unit.changed)]
        if unit.old is not None:
            self.add(unit.old, changed, -1)
        self.add(unit, changed)

    def add(self, unit: Unit, series: Iterable[Series], sign: int = 1) -> None:
        """Add a unit's rows, or take them away."""
        address = unit.address
        for each in series:
            row = each.row(unit)
            if row is not None:
                numbers = powers(row)
                answered = sign * any(unit.values.get(name, NONE).n for name in each.answers)
                self._into((address, each.key), len(row), sign, answered, numbers)
                for suffix in segment_suffixes(unit.segments) if each.split else ():
                    self._into((address, each.key + suffix), len(row), sign, answered, numbers)

    def _into(self, place: tuple[Address, str], columns: int, sign: int, answered: int, numbers: Row) -> None:
        cell = self._sums.get(place)
        if cell is None:
            self._columns[place] = columns
            cell = self._sums[place] = [0.0] * (2 + len(numbers))
        cell[0] += answered
        cell[1] += sign
        for i, number in enumerate(numbers, 2):
            cell[i] += sign * number

    def _means(self, unit: Unit) -> None:
        names = BUILT_IN if EVERYTHING in unit.changed else unit.changed.intersection(BUILT_IN)
        for name in names:
            for sign, found in ((-1, unit.old), (1, unit)):
                if found is not None and (values := found.values.get(name, NONE)).n:
                    place = (found.info.id, found.arm, name)
                    cell = self._built_in.setdefault(place, [0, 0.0])
                    cell[0] += sign * values.n
                    cell[1] += sign * values.total

    def cohorts(self) -> Iterator[Cells]:
        """Rows of `cohorts`, in one order for all writers."""
        for address, cell in sorted(self._cohorts.items()):
            if any(cell):
                yield (*address, *cell)

    def sums(self) -> Iterator[Cells]:
        """Rows of `sums`."""
        for (address, key), cell in sorted(self._sums.items()):
            if any(cell):
                sums, products, cubes = parts_of(cell[2:], self._columns[address, key])
                yield (
                    *(*address, key, int(cell[0]), int(cell[1])),
                    *(*sums, *_zeros(COLUMNS - len(sums))),
                    *(*products, *_zeros(PRODUCTS - len(products))),
                    *(*cubes, *_zeros(CUBES - len(cubes))),
                )

    def built_in(self) -> Iterator[Cells]:
        """Rows of `built_in`."""
        for place, (n, total) in sorted(self._built_in.items()):
            yield (*place, int(n), total)


def parts_of(numbers: Sequence[float], columns: int) -> tuple[Sequence[float], ...]:
    """What `powers` made of a row, or sums of it: numbers, products of two, products of three."""
    products = columns + columns * (columns + 1) // 2
    return numbers[:columns], numbers[columns:products], numbers[products:]


def _zeros(n: int) -> Row:
    return (0.0,) * n


CHUNK = 5000  # units


def follow_metrics(session: WriteSession, before: PhaseInfo, now: PhaseInfo) -> None:
    """A phase's metrics are others now: make the sums that it did not have, and the values they read."""
    names = (now.names - before.names) | (now.covariates - before.covariates)
    planned = now.readings.keys() - before.readings.keys()
    known = {(series.key, series.metric, series.split) for series in before.series}
    new = [series for series in now.series if (series.key, series.metric, series.split) not in known]
    if names:
        _refill(session, now, names)
        _no_longer_aside(session, now, planned)
    if new:
        _resum(session, now, new)


def _refill(session: WriteSession, info: PhaseInfo, names: Collection[str]) -> None:
    """Values under some keys, of all units."""
    of, among, shown = outcomes.c, session.bulk.among, exposures.c
    read = {name for name, found in info.readings.items() if any(key in names for key, _ in found)}
    for found in _chunks(session, info, "outcomes are read again"):
        by_id = {unit.id: unit for unit in found}
        stale = (among(values.c.unit_id, by_id), among(values.c.metric, names))
        session.conn.execute(delete(values).where(*stale))
        query = select(of.unit_id, of.metric, of.value, of.time, of.came).where(among(of.metric, read))
        for unit, *row in session.conn.execute(query.where(among(of.unit_id, by_id))):
            by_id[unit].count(*row)
        if RESPONSES in read:
            answers = select(shown.unit_id, shown.time).where(among(shown.unit_id, by_id))
            for unit, time in session.conn.execute(answers):
                by_id[unit].count(RESPONSES, 1.0, time)
        recall_past(session, info, {unit.unit: unit for unit in found}, info.covariates.intersection(names))
        rows = ((u.id, name, *kept) for u in found for name, kept in u.values.items() if name in names)
        session.bulk.write(session.conn, values, rows, Clash.KEEP)


def _no_longer_aside(session: WriteSession, info: PhaseInfo, names: Collection[str]) -> None:
    """Outcomes of these names were in no sum, and are now."""
    of, places = outcomes.c, dict[tuple[int, str, str], int]()
    for chunk in _chunks(session, info, "outcomes are counted"):
        here = (session.bulk.among(of.unit_id, [u.id for u in chunk]), session.bulk.among(of.metric, names))
        found = session.conn.execute(select(of.unit_id, func.count()).where(*here).group_by(of.unit_id))
        arms = {unit.id: unit.arm for unit in chunk}
        for unit, n in found:
            place = (info.id, arms[unit], UNPLANNED)
            places[place] = places.get(place, 0) - n
    rows = ((*place, n, 0.0) for place, n in sorted(places.items()))
    session.bulk.write(session.conn, built_in, rows, Clash.ADD)


def _resum(session: WriteSession, info: PhaseInfo, series: Sequence[Series]) -> None:
    """Some of the sums, over all units; values must be there."""
    names = info.names & frozenset().union(*(s.reads for s in series))
    session.conn.execute(delete(sums).where(sums.c.phase == info.id, or_(*map(_rows_of, series))))
    found = Deltas()
    for chunk in _chunks(session, info, "sums are made anew"):
        session.read_values({unit.id: unit for unit in chunk}, names)
        for unit in chunk:
            found.add(unit, series)
    session.bulk.write(session.conn, sums, found.sums(), Clash.ADD)


def _rows_of(series: Series) -> ColumnElement[bool]:
    of = sums.c.metric
    return or_(of == series.key, of.startswith(series.key + SEPARATOR, autoescape=True))


def _chunks(session: WriteSession, info: PhaseInfo, what: str) -> Iterator[list[Unit]]:
    """All units of a phase, without their values."""
    of, last, done, total = units.c, 0, 0, 0
    query = select(units).where(of.phase == info.id).order_by(of.id).limit(CHUNK)
    while rows := session.conn.execute(query.where(of.id > last)).all():
        yield [unit_from_row(info, row) for row in rows]
        last, done = rows[-1].id, done + len(rows)
        if len(rows) < CHUNK:
            break
        total = total or session.conn.execute(select(func.count()).where(of.phase == info.id)).scalar_one()
        log.info("%s: %s, %d of %d units", info.title, what, done, total)


def recall_past(
    session: WriteSession, info: PhaseInfo, named: Mapping[str, Unit], metrics: Collection[str]
) -> None:
    """Give units of a phase, by name, their past: each outcome from before the phase, once."""
    of, among = outcomes.c, session.bulk.among
    before = (among(of.metric, metrics), of.time < info.started)
    placed = select(of.key, units.c.unit, of.metric, of.value, of.came).join_from(
        outcomes, units, of.unit_id == units.c.id
    )
    waiting = select(of.key, of.unit, of.metric, of.value, of.came).where(WAITING)
    seen: set[tuple[str, str]] = set()
    for query, name in ((placed, units.c.unit), (waiting, of.unit)):
        for key, unit, *row in session.conn.execute(query.where(among(name, named), *before)):
            if (key, unit) not in seen:
                seen.add((key, unit))
                named[unit].recall(*row)
