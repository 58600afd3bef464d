"""The sums of a phase, read back: rows of stretches of time, never rows of units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from router.errors import ExperimentNotFound
from router.experiments.model import MetricSpec
from router.experiments.stats import Kind, Moments
from router.experiments.stats.moments import places
from router.experiments.store import tables
from router.experiments.store.port import Bucket, PhaseData
from router.experiments.store.resources import read
from router.experiments.store.series import LENGTHS, PhaseInfo, Phases, split_key
from router.experiments.store.tables import COLUMNS, PRODUCTS

Cell = tuple[int, Moments]  # units that answered, and their sums


def info_of(conn: Connection, phases: Phases, name: str, number: int) -> PhaseInfo:
    """Raises ExperimentNotFound, naming the phases that there are."""
    found = phases.named(conn, {name})
    if (name, number) not in found:
        read(conn, name)
        there = ", ".join(str(n) for _, n in sorted(found)) or "none"
        raise ExperimentNotFound(name, f": phase {number} is not there, there are: {there}")
    return found[name, number]


def phase_data(conn: Connection, info: PhaseInfo, only_differing: bool = False) -> PhaseData:
    """All sums of a phase, or those of units for which the routers differed."""
    found = _cohorts(conn, info, only_differing)
    sums = _sums(conn, info, only_differing)
    answers: dict[str, int] = defaultdict(int)
    for (_, arm), row in sorted(found.items(), key=lambda item: item[0][1]):
        answers[arm] += row[3]
    return PhaseData(
        buckets=tuple(_bucket(info, *place, found[place], sums[place]) for place in sorted(found)),
        crossed=sum(row[2] for row in found.values()),
        digests=_digests(conn, info),
        responses=dict(answers),
        peak=conn.execute(select(tables.phases.c.peak).where(tables.phases.c.id == info.id)).scalar_one(),
        built_in=_built_in(conn, info, only_differing),
    )


def _rows(conn: Connection, table: Any, info: PhaseInfo, only_differing: bool) -> Sequence[Any]:
    query = select(*(c for c in table.c if c.name not in ("phase", "differed")))
    query = query.where(table.c.phase == info.id)
    return conn.execute(query.where(table.c.differed) if only_differing else query).all()


def _cohorts(conn: Connection, info: PhaseInfo, only: bool) -> dict[tuple[int, str], tuple[int, ...]]:
    found: dict[tuple[int, str], tuple[int, ...]] = {}
    for arm, stretch, *row in _rows(conn, tables.cohorts, info, only):
        before = found.get((stretch, arm), (0,) * len(row))
        found[stretch, arm] = tuple(a + b for a, b in zip(before, row, strict=True))
    return {place: row for place, row in found.items() if row[0]}


def _sums(conn: Connection, info: PhaseInfo, only: bool) -> Mapping[tuple[int, str], Mapping[str, Cell]]:
    columns = {series.key: series.columns for series in info.series}
    split = {series.key for series in info.series if series.split}
    found: dict[tuple[int, str], dict[str, Cell]] = defaultdict(dict)
    for arm, stretch, key, answered, n, *numbers in _rows(conn, tables.sums, info, only):
        name, segment = split_key(key)
        if name not in columns or (segment and name not in split):
            continue  # a secondary metric's that is no more
        cell, here = (answered, _moments(n, numbers, columns[name])), found[stretch, arm]
        here[key] = _both(here[key], cell) if key in here else cell
    return found


def _moments(n: int, numbers: Sequence[float], columns: int) -> Moments:
    starts = ((0, 1), (COLUMNS, 2), (COLUMNS + PRODUCTS, 3))
    parts = (tuple(numbers[at : at + len(places(columns, power))]) for at, power in starts)
    return Moments(n, *parts)


def _both(one: Cell, other: Cell) -> Cell:
    return one[0] + other[0], one[1].merge(other[1])


def _bucket(
    info: PhaseInfo, stretch: int, arm: str, cohort: Sequence[int], sums: Mapping[str, Cell]
) -> Bucket:
    offset, seconds = info.stretches.span(stretch)
    cells = {s.key: sums.get(s.key) or (0, Moments.empty(s.columns)) for s in info.series}
    names = [m.name for m in info.metrics]
    return Bucket(
        arm,
        info.started + offset,
        seconds,
        exposed=cohort[0],
        degraded=cohort[1],
        answered={name: cells[name][0] for name in names},
        moments={name: cells[name][1] for name in names},
        lengths=cells[LENGTHS][1] if _has_lengths(info.metrics) else None,
        segments=_segments(info, sums),
    )


def _segments(info: PhaseInfo, sums: Mapping[str, Cell]) -> dict[tuple[str, str], Moments]:
    if not info.segments:
        return {}
    found = ((split_key(key)[1], moments) for key, (_, moments) in sorted(sums.items()))
    return {segment: moments for segment, moments in found if segment and moments.n}


def _has_lengths(metrics: Sequence[MetricSpec]) -> bool:
    return metrics[0].kind is not Kind.RATIO


def _digests(conn: Connection, info: PhaseInfo) -> dict[str, tuple[str, ...]]:
    of = tables.digests.c
    found: dict[str, tuple[str, ...]] = {}
    query = select(of.arm, of.digest).where(of.phase == info.id).order_by(of.place)
    for arm, digest in conn.execute(query):
        found[arm] = (*found.get(arm, ()), digest)
    return dict(sorted(found.items()))


def _built_in(conn: Connection, info: PhaseInfo, only: bool) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for arm, metric, n, total in _rows(conn, tables.built_in, info, only):
        before = found.setdefault(arm, {}).get(metric, (0, 0.0))
        found[arm][metric] = (before[0] + n, before[1] + total)
    means = {arm: {m: total / n for m, (n, total) in of.items() if n} for arm, of in sorted(found.items())}
    return {arm: of for arm, of in means.items() if of}
