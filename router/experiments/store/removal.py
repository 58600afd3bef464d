"""What is no longer needed goes, some thousand rows at a time, so that nobody waits long for it.

Rows of deleted experiments; and outcomes that wait: those of a response for a day (its exposure is written
within seconds, or never), those of a unit for 35 days, as the past of experiments to come.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Delete, delete, select

from router.experiments.store import tables
from router.experiments.store.bulk import Bulk

CHUNK = 2000
RESPONSE_WAITS, UNIT_WAITS = 86_400.0, 35 * 86_400.0  # seconds
_SUMS = (tables.digests, tables.cohorts, tables.sums, tables.built_in, tables.pairs, tables.disagreements)


def remove_some(conn: Connection, bulk: Bulk, now: float) -> bool:
    """One step in one transaction. Whether something was removed: then there may be more."""
    return _remove_deleted(conn, bulk) or _remove_waiting(conn, now)


def _remove_deleted(conn: Connection, bulk: Bulk) -> bool:
    of = tables.experiments.c
    key = conn.execute(select(of.id).where(of.name.is_(None)).limit(1)).scalar()
    if key is None:
        return False
    phases = conn.execute(select(tables.phases.c.id).where(tables.phases.c.experiment == key)).scalars().all()
    here = bulk.among(tables.units.c.phase, phases)
    units = conn.execute(select(tables.units.c.id).where(here).limit(CHUNK)).scalars().all()
    if units:
        for column in (tables.exposures.c.unit_id, tables.outcomes.c.unit_id, tables.values.c.unit_id):
            conn.execute(delete(column.table).where(bulk.among(column, units)))
        conn.execute(delete(tables.units).where(bulk.among(tables.units.c.id, units)))
        return True
    _remove_phases(conn, bulk, phases)
    conn.execute(delete(tables.experiments).where(of.id == key))
    return True


def _remove_phases(conn: Connection, bulk: Bulk, phases: Sequence[int]) -> None:
    for table in _SUMS:
        conn.execute(delete(table).where(bulk.among(table.c.phase, phases)))
    conn.execute(delete(tables.phases).where(bulk.among(tables.phases.c.id, phases)))


def _remove_waiting(conn: Connection, now: float) -> bool:
    of = tables.outcomes.c
    response = _some((of.response_id != "") & (of.received < now - RESPONSE_WAITS))
    unit = _some(of.received < now - UNIT_WAITS)
    return sum(conn.execute(query).rowcount for query in (response, unit)) > 0


def _some(which: ColumnElement[bool]) -> Delete:
    table = tables.outcomes
    keys = select(table.c.key).where(tables.WAITING, which).limit(CHUNK)
    return delete(table).where(tables.WAITING, table.c.key.in_(keys))
