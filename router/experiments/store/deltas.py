"""What a batch changes in the sums: collected unit by unit, added in the database in one statement each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from router.experiments.model import BUILT_IN
from router.experiments.store.series import EVERYTHING, NONE, Row, Series
from router.experiments.store.tables import COLUMNS, PRODUCTS
from router.experiments.store.units import Address, Unit

Cells: TypeAlias = tuple[object, ...]


class Deltas:
    """Differences by address: of `cohorts`, of `sums` and of `built_in`."""

    def __init__(self) -> None:
        self._cohorts: dict[Address, list[int]] = {}
        self._sums: dict[tuple[Address, str], list[float]] = {}
        self._columns: dict[tuple[Address, str], int] = {}
        self._built_in: dict[tuple[int, str, bool, str], list[float]] = {}

    def collect(self, units: Iterable[Unit]) -> Deltas:
        """Add what these became and take away what they were."""
        for unit in units:
            if unit.old is None or (unit.old.differed != unit.differed):
                unit.changed.add(EVERYTHING)
            if unit.dirty:
                self._cohort(unit)
            if unit.changed:
                self._series(unit)
                self._means(unit)
        return self

    def _cohort(self, unit: Unit) -> None:
        for sign, found in ((-1, unit.old), (1, unit)):
            if found is not None:
                cell = self._cohorts.setdefault(found.address, [0, 0, 0, 0])
                for i, n in enumerate((1, found.degraded, found.crossed, found.answers)):
                    cell[i] += sign * n

    def _series(self, unit: Unit) -> None:
        for series in unit.info.series:
            if not series.reads.isdisjoint(unit.changed):
                if unit.old is not None:
                    self._row(unit.old, series, -1)
                self._row(unit, series, 1)

    def _row(self, unit: Unit, series: Series, sign: int) -> None:
        row = series.row(unit)
        if row is None:
            return
        place, width = (unit.address, series.key), len(row)
        cell = self._sums.get(place)
        if cell is None:
            self._columns[place] = width
            cell = self._sums[place] = [0.0] * (2 + width + width * (width + 1) // 2)
        cell[0] += sign * (unit.values.get(series.answers, NONE).n > 0)
        cell[1] += sign
        at = 2 + width
        for i, value in enumerate(row):
            cell[2 + i] += sign * value
            for other in row[i:]:
                cell[at] += sign * value * other
                at += 1

    def _means(self, unit: Unit) -> None:
        names = BUILT_IN if EVERYTHING in unit.changed else unit.changed.intersection(BUILT_IN)
        for name in names:
            for sign, found in ((-1, unit.old), (1, unit)):
                if found is not None and (values := found.values.get(name, NONE)).n:
                    place = (found.info.id, found.arm, found.differed, name)
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
            width = self._columns[address, key]
            products = cell[2 + width :]
            if any(cell):
                head = (*address, key, int(cell[0]), int(cell[1]), *cell[2 : 2 + width])
                yield (*head, *_zeros(COLUMNS - width), *products, *_zeros(PRODUCTS - len(products)))

    def built_in(self) -> Iterator[Cells]:
        """Rows of `built_in`."""
        for place, (n, total) in sorted(self._built_in.items()):
            yield (*place, int(n), total)


def _zeros(n: int) -> Row:
    return (0.0,) * n
