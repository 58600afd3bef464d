"""Old tables are taken up to the newest version, step by step, and sums are made anew where they must be.

A server brings its own database up to date when it opens it, in one transaction, on both databases. Steps
are plain functions rather than Alembic's, so there is no second tool or folder of scripts to ship. They
change tables by name, since `tables.py` may have gone on. A newer database is refused.

Values and sums of a phase are made anew from what was logged, some thousand units at a time: after the last
step, and where a phase has other metrics than before. The caller is the only writer, so nothing is counted
twice and nothing is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, delete, func, insert, inspect, or_, select

from router.errors import ConfigError
from router.experiments.store import tables
from router.experiments.store.database import Clash, bulk_for
from router.experiments.store.recording import recall_past
from router.experiments.store.series import SEPARATOR, PhaseInfo, Phases, Series
from router.experiments.store.session import Deltas, Session, Unit, unit_from_row, unit_row
from router.experiments.store.tables import PREFIX, cohorts, outcomes, sums, units, values, version

log = logging.getLogger(__name__)
CHUNK = 5000  # units
VERSION = 2
SUMS_SINCE = 2
"""Sums of versions before this one lack something: they are made anew."""


def migrate(conn: Connection) -> None:
    """Bring the tables to the newest version. The connection is the only writer: two servers that open
    one database at once come one after the other. Raises ConfigError if it is newer than this program."""
    there = _version(conn)
    if there is None:
        tables.metadata.create_all(conn)
    else:
        _refuse_newer(there)
        for number in range(there, VERSION):
            log.warning("the tables of experiments are taken from version %d to %d", number, number + 1)
            STEPS[number + 1](conn)
    if there is not None and there < SUMS_SINCE:
        bulk = bulk_for(conn.dialect.name)
        _rebuild_all(Session(conn, bulk, Phases(bulk)))
    if there != VERSION:
        conn.execute(delete(version))
        conn.execute(insert(version).values(version=VERSION))


def check_version(conn: Connection) -> None:
    """Raises ConfigError if the tables are not there, or are of another version."""
    there = _version(conn)
    if there is None:
        raise ConfigError("there is no such database of experiments: it has no tables of lora-router")
    _refuse_newer(there)
    if there < VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program reads {VERSION}: start the server of "
            "this lora-router once, which takes them up to date"
        )


def _refuse_newer(there: int) -> None:
    if there > VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program knows {VERSION}: they were written by a "
            "newer lora-router; update this one, or name another database"
        )


def _version(conn: Connection) -> int | None:
    """None: the tables are not there."""
    if not inspect(conn).has_table(version.name):
        return None
    return conn.execute(select(version.c.version)).scalar_one_or_none()


def _to_second(conn: Connection) -> None:
    """Third powers, when an outcome came, segments of units, and units of pairs."""
    number = "DOUBLE PRECISION" if conn.dialect.name == "postgresql" else "DOUBLE"
    added = [
        ("units", "segments", "TEXT", "''"),
        ("pairs", "unit", "TEXT", "''"),
        ("outcomes", "came", number, "0"),
    ]
    added += [("sums", f"c{i}", number, "0") for i in range(20)]
    for table, column, kind, default in added:
        conn.exec_driver_sql(
            f"ALTER TABLE {PREFIX}{table} ADD COLUMN {column} {kind} NOT NULL DEFAULT {default}"
        )
    tables.segment_values.create(conn, checkfirst=True)
    conn.exec_driver_sql(f"DROP INDEX IF EXISTS {PREFIX}pairs_result")


STEPS: Mapping[int, Callable[[Connection], None]] = {2: _to_second}
"""Version -> what makes it out of the one before."""


def follow_metrics(session: Session, before: PhaseInfo, now: PhaseInfo) -> None:
    """A phase's metrics are others now: make the sums that it did not have, and the values they read."""
    names = (now.names - before.names) | (now.covariates - before.covariates)
    known = {(series.key, series.metric, series.split) for series in before.series}
    new = [series for series in now.series if (series.key, series.metric, series.split) not in known]
    if names:
        _refill(session, now, names)
    if new:
        _resum(session, now, new)


def _rebuild_all(session: Session) -> None:
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
        session.bulk.write(session.conn, units, map(unit_row, chunk), Clash.REPLACE)
    session.bulk.write(session.conn, cohorts, found.cohorts(), Clash.ADD)


def _chunks(session: Session, info: PhaseInfo, told: str) -> Iterator[list[Unit]]:
    """All units of a phase, without their values."""
    of, last, done, total = units.c, 0, 0, 0
    query = select(units).where(of.phase == info.id).order_by(of.id).limit(CHUNK)
    while rows := session.conn.execute(query.where(of.id > last)).all():
        yield [unit_from_row(info, row) for row in rows]
        last, done = rows[-1].id, done + len(rows)
        if len(rows) < CHUNK:
            break
        total = total or session.conn.execute(select(func.count()).where(of.phase == info.id)).scalar_one()
        log.info("%s: %s, %d of %d units", info.title, told, done, total)
