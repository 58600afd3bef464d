"""What units have over all their answers: for designs in which a unit is a slice of time or a tenant.

There a unit has many answers, and its value is a mean over them. A proportion is the share of its answers,
and a cap counts for each answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, case, func, select

from router.experiments.model import Kind, MetricSpec, Unanswered
from router.experiments.store import tables
from router.experiments.store.store import ExperimentStore
from router.experiments.times import slow_share

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


@dataclass(frozen=True, slots=True)
class UnitAnswers:
    """A unit as it was exposed, and what it has of each metric. `first` is unix seconds."""

    id: int
    unit: str
    arm: str
    first: float
    responses: int
    metrics: dict[str, Fraction] = field(default_factory=dict)


class AnswerReader:
    """Reads the units of a phase. Sums of outcomes with a cap are added up row by row, so those of units that
    nothing changes any more are kept."""

    def __init__(self, store: ExperimentStore) -> None:
        self._store = store
        self._capped: dict[tuple[int, str, float, float], tuple[int, float]] = {}

    def read(
        self, experiment: str, phase: int, metrics: Sequence[MetricSpec], settled: float
    ) -> list[UnitAnswers]:
        """All units. `settled`: nothing changes those that began before, in unix seconds. Blocks; raises
        StoreDown."""
        with self._store.reading() as conn:
            found = _units(conn, experiment, phase)
            counted = _counted(conn, [unit.id for unit in found], _names(metrics))
            for metric in metrics:
                by_row = metric.cap is not None or slow_share(metric.name) is not None
                sums = self._sums_by_row(conn, found, metric, settled) if by_row else {}
                for unit in found:
                    there = dict(counted.get(unit.id, {}))
                    if by_row:
                        there[metric.name] = sums.get(unit.id, (0, 0.0))
                    unit.metrics[metric.name] = _fraction(metric, there, unit.responses)
        return found

    def _sums_by_row(
        self, conn: Connection, found: Iterable[UnitAnswers], metric: MetricSpec, settled: float
    ) -> Mapping[int, tuple[int, float]]:
        """Unit to number and sum of its outcomes, each of which counts as at most the cap, or as 1 if it was
        slow."""
        cap, least, slow = float(metric.cap or 0.0), metric.least, slow_share(metric.name)
        keys = {unit.id: (unit.id, metric.name, cap, least) for unit in found}
        final = {unit.id for unit in found if unit.first < settled}
        sums = {id_: self._capped[key] for id_, key in keys.items() if key in self._capped}
        names = (metric.name,) if slow is None else slow.outcomes
        value = case((outcomes.value > cap, cap), (outcomes.value < least, least), else_=outcomes.value)
        if slow is not None:
            value = case((outcomes.value > slow.seconds, 1.0), else_=0.0)
        for some in _batches([id_ for id_ in keys if id_ not in sums]):
            which = outcomes.unit_id.in_(some), outcomes.metric.in_(names), outcomes.late == 0
            query = select(outcomes.unit_id, func.count(), func.sum(value)).where(*which)
            for id_, count, total in conn.execute(query.group_by(outcomes.unit_id)):
                sums[id_] = int(count), float(total)
        self._capped |= {keys[id_]: one for id_, one in sums.items() if id_ in final}
        return sums


def _units(conn: Connection, experiment: str, phase: int) -> list[UnitAnswers]:
    joined = tables.units.join(tables.phases, units.phase == tables.phases.c.id).join(
        tables.experiments, tables.phases.c.experiment == tables.experiments.c.id
    )
    query = select(units.id, units.unit, units.arm, units.first, units.responses).select_from(joined)
    which = tables.experiments.c.name == experiment, tables.phases.c.number == phase
    return [UnitAnswers(*row) for row in conn.execute(query.where(*which).order_by(units.id))]


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
    """The sum of the outcomes, over how many answers."""
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
