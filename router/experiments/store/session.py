"""One writing transaction: the units it touches, read once and written once, with the sums they change.

One writer at a time: SQLite has no other way, PostgreSQL takes an advisory lock. So what is read stays true
until the commit, an outcome cannot slip past its exposure, and two servers cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from sqlalchemy import ColumnElement, Connection, func, select

from router.experiments.model import Exposure
from router.experiments.store.bulk import Bulk, Clash
from router.experiments.store.deltas import Deltas
from router.experiments.store.phases import Phases
from router.experiments.store.series import EVERYTHING, PhaseInfo, Values
from router.experiments.store.tables import built_in, cohorts, sums, units, values
from router.experiments.store.units import Unit


class Session:
    """Units by id and by (phase, unit). `add` and `find` before changes, `load` values, `finish`."""

    def __init__(self, conn: Connection, bulk: Bulk, phases: Phases) -> None:
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
        for key, name, phase, *rest in self.conn.execute(select(units).where(*which)):
            if phase in infos and key not in self.units:
                self._keep(Unit(key, infos[phase], name, *rest)).remember()

    def _keep(self, unit: Unit) -> Unit:
        self.units[unit.id] = self.named[unit.info.id, unit.unit] = unit
        return unit

    def add(self, info: PhaseInfo, first: Exposure) -> Unit:
        """A new unit, by its first exposure."""
        if not self._next:
            self._next = self.conn.execute(select(func.coalesce(func.max(units.c.id), 0))).scalar_one()
        self._next += 1
        stretch = info.stretch(first.time)
        return self._keep(Unit(self._next, info, first.unit, first.arm, first.time, stretch))

    def load(self, changing: Collection[str]) -> None:
        """Read the values that sums are made of which read any of `changing`. Once, before any changes."""
        known = {key: unit for key, unit in self.units.items() if unit.old is not None}
        infos = {unit.info.id: unit.info for unit in known.values()}
        names = {name for info in infos.values() for name in _needed(info, frozenset(changing))}
        if not known or not names:
            return
        which = [self.bulk.among(values.c.unit_id, known), self.bulk.among(values.c.metric, names)]
        for key, metric, *rest in self.conn.execute(select(values).where(*which)):
            unit = known[key]
            unit.values[metric] = Values(*rest)
            if unit.old is not None:
                unit.old.values[metric] = unit.values[metric]

    def write_units(self) -> None:
        """Before anything looks for them in the tables."""
        rows = (_row(u) for u in self.units.values() if u.dirty)
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


def _needed(info: PhaseInfo, changing: frozenset[str]) -> frozenset[str]:
    if EVERYTHING in changing:
        return info.names
    reads = (s.reads for s in info.series if not s.reads.isdisjoint(changing))
    return (changing | frozenset().union(*reads)) & info.names


def _row(u: Unit) -> tuple[int | str | float | bool, ...]:
    place = (u.id, u.unit, u.info.id, u.arm, u.first, u.stretch)
    return (*place, u.answers, u.responses, u.degraded, u.crossed, u.differed)
