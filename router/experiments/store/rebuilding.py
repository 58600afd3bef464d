"""Values and sums of a phase made anew from what was logged, some thousand units at a time.

Where a phase has other metrics than before, and where the tables of an older version lacked something. The
caller is the only writer, so nothing is counted twice and nothing is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import ColumnElement, delete, func, or_, select

from router.experiments.store.bulk import Clash
from router.experiments.store.recording import recall_past
from router.experiments.store.series import SEPARATOR, PhaseInfo, Series
from router.experiments.store.session import Deltas, Session, Unit, row_of, unit_of
from router.experiments.store.tables import cohorts, outcomes, sums, units, values

log = logging.getLogger(__name__)
CHUNK = 5000  # units


def follow(session: Session, before: PhaseInfo, now: PhaseInfo) -> None:
    """A phase's metrics are others now: make the sums that it did not have, and the values they read."""
    names = (now.names - before.names) | (now.covariates - before.covariates)
    known = {(series.key, series.metric, series.split) for series in before.series}
    new = [series for series in now.series if (series.key, series.metric, series.split) not in known]
    if names:
        _refill(session, now, names)
    if new:
        _resum(session, now, new)


def rebuild_all(session: Session) -> None:
    """All sums of all phases, and where their units are in time."""
    for info in session.phases.all(session.conn):
        if info.stretches.even:
            _place_anew(session, info)
        _resum(session, info, info.series)


def _refill(session: Session, info: PhaseInfo, names: Collection[str]) -> None:
    """Values of some names, of all units. `late` tells already what does not count."""
    of, among = outcomes.c, session.bulk.among
    for found in _chunks(session, info, "outcomes are read again"):
        by_id = {unit.id: unit for unit in found}
        stale = (among(values.c.unit_id, by_id), among(values.c.metric, names))
        session.conn.execute(delete(values).where(*stale))
        query = select(of.unit_id, of.metric, of.value, of.time).where(of.late == 0, among(of.metric, names))
        for unit, *said in session.conn.execute(query.where(among(of.unit_id, by_id))):
            by_id[unit].count(*said)
        recall_past(session, info, {unit.unit: unit for unit in found}, info.covariates.intersection(names))
        rows = ((unit.id, name, *kept) for unit in found for name, kept in unit.values.items())
        session.bulk.write(session.conn, values, rows, Clash.KEEP)


def _resum(session: Session, info: PhaseInfo, series: Sequence[Series]) -> None:
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


def _place_anew(session: Session, info: PhaseInfo) -> None:
    """Stretches of time were others: those that its units are in, and units by stretch."""
    session.conn.execute(delete(cohorts).where(cohorts.c.phase == info.id))
    found = Deltas()
    for chunk in _chunks(session, info, "epochs are numbered anew"):
        for unit in chunk:
            unit.stretch = info.stretch(unit.first)
            found.add_cohort(unit)
        session.bulk.write(session.conn, units, map(row_of, chunk), Clash.REPLACE)
    session.bulk.write(session.conn, cohorts, found.cohorts(), Clash.ADD)


def _chunks(session: Session, info: PhaseInfo, told: str) -> Iterator[list[Unit]]:
    """All units of a phase, without their values."""
    of, last, done, total = units.c, 0, 0, 0
    query = select(units).where(of.phase == info.id).order_by(of.id).limit(CHUNK)
    while rows := session.conn.execute(query.where(of.id > last)).all():
        yield [unit_of(info, row) for row in rows]
        last, done = rows[-1].id, done + len(rows)
        if len(rows) < CHUNK:
            break
        total = total or session.conn.execute(select(func.count()).where(of.phase == info.id)).scalar_one()
        log.info("%s: %s, %d of %d units", info.title, told, done, total)
