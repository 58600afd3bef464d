"""Values of slices, as the store has them: for each part of a slice, sums over its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, case, func, select

from router.experiments.model import Kind, MetricSpec, Unanswered
from router.experiments.slices import FIRST, SECOND, SlicePart
from router.experiments.store import tables
from router.experiments.store.store import ExperimentStore

units, values, outcomes = tables.units.c, tables.values.c, tables.outcomes.c
BATCH = 500  # units of one query


class Fraction(NamedTuple):
    """A sum over another one: a value over many answers."""

    over: float = 0.0
    under: float = 0.0

    def plus(self, other: Fraction) -> Fraction:
        """Of all answers of both."""
        return Fraction(self.over + other.over, self.under + other.under)

    @property
    def value(self) -> float | None:
        """None where nothing was recorded."""
        return self.over / self.under if self.under > 0 else None


@dataclass
class SliceSums:
    """A slice of a server without its wash-out. `parts` by metric: first half, second half."""

    server: str
    number: int
    arm: str
    parts: dict[str, list[Fraction]] = field(default_factory=dict)
    responses: int = 0

    def value(self, metric: str, part: int | None = None) -> float | None:
        """Of the whole slice, or of one half."""
        halves = self.parts.get(metric, [Fraction(), Fraction()])
        return (halves[0].plus(halves[1]) if part is None else halves[part]).value


class _Part(NamedTuple):
    id: int
    place: SlicePart
    arm: str
    responses: int
    first: float


class SliceReader:
    """Reads the slices of a phase. Sums of outcomes with a cap are added up row by row, so those of parts
    that nothing changes any more are kept."""

    def __init__(self, store: ExperimentStore) -> None:
        self._store = store
        self._capped: dict[tuple[int, str, float, float], tuple[int, float]] = {}

    def read(
        self, experiment: str, phase: int, metrics: Sequence[MetricSpec], settled: float
    ) -> dict[tuple[str, int], SliceSums]:
        """By server and number. `settled`: nothing changes parts that began before, in unix seconds. Blocks;
        raises StoreDown."""
        with self._store.reading() as conn:
            parts = _parts(conn, experiment, phase)
            counted = _counted(conn, [part.id for part in parts], _names(metrics))
            capped = {
                m.name: self._capped_sums(conn, parts, m, settled) for m in metrics if m.cap is not None
            }
        found: dict[tuple[str, int], SliceSums] = {}
        for part in parts:
            at = part.place.server, part.place.number
            one = found.setdefault(at, SliceSums(*at, part.arm))
            one.responses += part.responses
            for metric in metrics:
                halves = one.parts.setdefault(metric.name, [Fraction(), Fraction()])
                there = dict(counted.get(part.id, {}))
                if metric.name in capped:
                    there[metric.name] = capped[metric.name].get(part.id, (0, 0.0))
                half = part.place.part == SECOND
                halves[half] = halves[half].plus(_fraction(metric, there, part.responses))
        return found

    def _capped_sums(
        self, conn: Connection, parts: Iterable[_Part], metric: MetricSpec, settled: float
    ) -> Mapping[int, tuple[int, float]]:
        """Unit to number and sum of its outcomes, each of which counts as at most the cap."""
        cap, least = float(metric.cap or 0.0), metric.least
        keys = {part.id: (part.id, metric.name, cap, least) for part in parts}
        final = {part.id for part in parts if part.first < settled}
        found = {id_: self._capped[key] for id_, key in keys.items() if key in self._capped}
        value = case((outcomes.value > cap, cap), (outcomes.value < least, least), else_=outcomes.value)
        for some in _batches([id_ for id_ in keys if id_ not in found]):
            which = outcomes.unit_id.in_(some), outcomes.metric == metric.name, outcomes.late == 0
            query = select(outcomes.unit_id, func.count(), func.sum(value)).where(*which)
            for id_, count, total in conn.execute(query.group_by(outcomes.unit_id)):
                found[id_] = int(count), float(total)
        self._capped |= {keys[id_]: sums for id_, sums in found.items() if id_ in final}
        return found


def _parts(conn: Connection, experiment: str, phase: int) -> list[_Part]:
    """Halves of slices."""
    joined = tables.units.join(tables.phases, units.phase == tables.phases.c.id).join(
        tables.experiments, tables.phases.c.experiment == tables.experiments.c.id
    )
    query = select(units.id, units.unit, units.arm, units.responses, units.first).select_from(joined)
    which = tables.experiments.c.name == experiment, tables.phases.c.number == phase
    found = []
    for key, unit, arm, responses, first in conn.execute(query.where(*which)):
        place = SlicePart.parsed(unit)
        if place is not None and place.part in (FIRST, SECOND):
            found.append(_Part(key, place, arm, responses, first))
    return found


def _names(metrics: Iterable[MetricSpec]) -> set[str]:
    return {name for metric in metrics for name in (metric.name, metric.per)}


def _counted(
    conn: Connection, ids: Sequence[int], names: set[str]
) -> dict[int, dict[str, tuple[int, float]]]:
    """Unit to number and sum of its outcomes by name."""
    found: dict[int, dict[str, tuple[int, float]]] = {}
    for some in _batches(ids):
        which = values.unit_id.in_(some), values.metric.in_(names)
        query = select(values.unit_id, values.metric, values.n, values.total).where(*which)
        for id_, name, count, total in conn.execute(query):
            found.setdefault(id_, {})[name] = int(count), float(total)
    return found


def _fraction(metric: MetricSpec, there: Mapping[str, tuple[int, float]], responses: int) -> Fraction:
    """What a part adds: the sum of the outcomes, over how many answers."""
    count, total = there.get(metric.name, (0, 0.0))
    if metric.kind is Kind.RATIO and metric.per == "responses":
        return Fraction(total, responses)
    if metric.kind is Kind.RATIO and metric.per != "outcomes":
        return Fraction(total, there.get(metric.per, (0, 0.0))[1])
    if metric.missing is not Unanswered.ZERO:
        return Fraction(total, count)
    nothing = 0.0 if metric.cap is None else min(max(0.0, metric.least), metric.cap)
    silent = max(0, responses - count)
    return Fraction(total + nothing * silent, count + silent)


def _batches(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[i : i + BATCH] for i in range(0, len(ids), BATCH))
