"""One writing transaction: the units it touches, read once and written once, with the sums they change.

One writer at a time: SQLite has no other way, PostgreSQL takes an advisory lock. So what is read stays true
until the commit, an outcome cannot slip past its exposure, and two servers cannot wait for each other. What
a batch changes in the sums is collected unit by unit, and added in the database in one statement each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, func, select

from router.extensions.experiments.model import Exposure
from router.extensions.experiments.store.series import (
    EVERYTHING,
    NONE,
    RESPONSES,
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
    cohorts,
    sums,
    units,
    values,
)
from router.shared.database import Bulk, Clash

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

    def _values(self) -> Iterator[tuple[int | str | float, ...]]:
        for unit in self.units.values():
            for name in unit.changed & unit.values.keys():
                yield (unit.id, name, *unit.values[name])


def _needed(info: PhaseInfo, outcomes: frozenset[str]) -> frozenset[str]:
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
    late: int = 0  # new outcomes that came or happened too late
    unserved: int = 0  # new requests that ended before their first token
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

    def recall(self, metric: str, value: float) -> None:
        """One more outcome from before the phase."""
        found = self.values.get(metric, NONE)
        total = found.before_total + value
        self.values[metric] = found._replace(before_n=found.before_n + 1, before_total=total)
        self.changed.add(metric)


class Deltas:
    """Differences by address: of `cohorts` and of `sums`."""

    def __init__(self) -> None:
        self._cohorts: dict[Address, list[int]] = {}
        self._sums: dict[tuple[Address, str], list[float]] = {}
        self._columns: dict[tuple[Address, str], int] = {}

    def collect(self, units: Iterable[Unit]) -> Deltas:
        """Add what these became and take away what they were."""
        for unit in units:
            if unit.old is None:
                unit.changed.add(EVERYTHING)
            if unit.dirty:
                self.add_cohort(unit)
            if unit.changed:
                self._series(unit)
            if unit.late or unit.unserved:
                cell = self._cohort(unit)
                cell[4] += unit.late
                cell[5] += unit.unserved
        return self

    def _cohort(self, unit: Unit) -> list[int]:
        return self._cohorts.setdefault(unit.address, [0] * 6)

    def add_cohort(self, unit: Unit) -> None:
        """Count it where it is now, and no more where it was."""
        for sign, found in ((-1, unit.old), (1, unit)):
            if found is not None:
                cell = self._cohort(found)
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


def parts_of(numbers: Sequence[float], columns: int) -> tuple[Sequence[float], ...]:
    """What `powers` made of a row, or sums of it: numbers, products of two, products of three."""
    products = columns + columns * (columns + 1) // 2
    return numbers[:columns], numbers[columns:products], numbers[products:]


def _zeros(n: int) -> Row:
    return (0.0,) * n
