"""Experiments themselves, their audit trail and salts, the sums of a phase, and the removal of what is old.

Sums are read as rows of stretches of time, never rows of units. Old rows go some thousand at a time, so
that nobody waits long for it: rows of deleted experiments; and outcomes that wait: those of a response for
a day (its exposure is written within seconds, or never), those of a unit for 35 days, as the past of
experiments to come.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, delete, insert, select, update

from router.errors import AlreadyExists, ExperimentNotFound, StaleEtag
from router.experiments.model import AuditEntry, Experiment, MetricSpec, Phase
from router.experiments.stats import Kind, Moments
from router.experiments.stats.moments import places
from router.experiments.store import tables
from router.experiments.store.database import Bulk
from router.experiments.store.migrating import follow_metrics
from router.experiments.store.port import Bucket, PhaseData
from router.experiments.store.series import LENGTHS, PhaseInfo, Phases, covariates_of, info_of, split_key
from router.experiments.store.session import Session
from router.experiments.store.tables import COLUMNS, PRODUCTS, from_json, to_json

_OF = tables.experiments.c
CHUNK = 2000
RESPONSE_WAITS, UNIT_WAITS = 86_400.0, 35 * 86_400.0  # seconds
_OF_PHASES = (
    *(tables.digests, tables.segment_values, tables.cohorts, tables.sums, tables.built_in),
    *(tables.pairs, tables.disagreements),
)
Cell = tuple[int, Moments]  # units that answered, and their sums


def get_salt(conn: Connection, purpose: str) -> str:
    """Made at the first call; the caller is the only writer."""
    of = tables.salts.c
    found = conn.execute(select(of.salt).where(of.purpose == purpose)).scalar()
    if found is None:
        found = secrets.token_hex(16)
        conn.execute(insert(tables.salts).values(purpose=purpose, salt=found))
    return str(found)


def read_experiment(conn: Connection, name: str) -> Experiment:
    """Raises ExperimentNotFound."""
    row = _experiment_row(conn, name)
    return from_json(row.document, row.etag)


def read_experiments(conn: Connection) -> tuple[Experiment, ...]:
    """By name."""
    rows = conn.execute(select(_OF.document, _OF.etag, _OF.name).where(_OF.name.is_not(None)))
    found = (from_json(row.document, row.etag) for row in rows)
    return tuple(sorted(found, key=lambda e: e.name))  # not in SQL: databases sort text in their own ways


def insert_experiment(conn: Connection, experiment: Experiment) -> Experiment:
    """Raises AlreadyExists."""
    if conn.execute(select(_OF.id).where(_OF.name == experiment.name)).scalar() is not None:
        raise AlreadyExists(f"{experiment.resource} exists already", resource=experiment.resource)
    kept = replace(experiment, etag=_new_etag())
    row = insert(tables.experiments).values(name=kept.name, etag=kept.etag, document=to_json(kept))
    _keep_phases(conn, conn.execute(row.returning(_OF.id)).scalar_one(), kept)
    return kept


def replace_experiment(session: Session, experiment: Experiment, audit: AuditEntry) -> Experiment:
    """Raises ExperimentNotFound, StaleEtag."""
    conn = session.conn
    row = _experiment_row(conn, experiment.name)
    _check_etag(row, experiment.etag)
    kept = replace(experiment, etag=_new_etag())
    changed = update(tables.experiments).where(_OF.id == row.id)
    conn.execute(changed.values(etag=kept.etag, document=to_json(kept)))
    append_audit(conn, audit)
    before = {phase.number: phase for phase in from_json(row.document, row.etag).phases}
    for key, phase in _keep_phases(conn, row.id, kept):
        old = before.get(phase.number, phase)
        if old.spec != phase.spec:
            follow_metrics(session, info_of(key, kept.name, old), info_of(key, kept.name, phase))
    return kept


def forget_experiment(conn: Connection, name: str, etag: str) -> None:
    """Take the name away: what was logged is removed later (`remove_some`), and is seen by nobody."""
    row = _experiment_row(conn, name)
    _check_etag(row, etag or row.etag)
    conn.execute(update(tables.experiments).where(_OF.id == row.id).values(name=None, document="", etag=""))
    conn.execute(delete(tables.audit).where(tables.audit.c.experiment == name))


def append_audit(conn: Connection, entry: AuditEntry) -> None:
    """One more line of the audit trail."""
    row = insert(tables.audit).values(
        experiment=entry.experiment,
        time=entry.time,
        actor=entry.actor,
        act=entry.act,
        reason=entry.reason.replace("\0", ""),  # what people write; PostgreSQL has no NUL
        detail=json.dumps(entry.detail, default=str),
    )
    conn.execute(row)


def read_trail(conn: Connection, name: str) -> tuple[AuditEntry, ...]:
    """Oldest first."""
    of = tables.audit.c
    found = select(of.experiment, of.time, of.actor, of.act, of.reason, of.detail)
    rows = conn.execute(found.where(of.experiment == name).order_by(of.time, of.id)).all()
    return tuple(AuditEntry(*row[:-1], detail=json.loads(row[-1])) for row in rows)


def _experiment_row(conn: Connection, name: str) -> Any:
    found = conn.execute(select(_OF.id, _OF.document, _OF.etag).where(_OF.name == name)).one_or_none()
    if found is None:
        raise ExperimentNotFound(name)
    return found


def _check_etag(row: Any, etag: str) -> None:
    if row.etag != etag:
        raise StaleEtag("the experiment changed since it was read: read it again, then change it")


def _keep_phases(conn: Connection, key: int, experiment: Experiment) -> list[tuple[int, Phase]]:
    """Those that were there before, with their ids."""
    of, known = tables.phases.c, []
    query = select(of.number, of.id).where(of.experiment == key)
    there: dict[int, int] = {row.number: row.id for row in conn.execute(query)}
    for phase in experiment.phases:
        covariates = json.dumps(sorted(covariates_of(phase.spec)))
        if phase.number in there:
            found = there[phase.number]
            conn.execute(update(tables.phases).where(of.id == found).values(covariates=covariates))
            known.append((found, phase))
        else:
            place = {"experiment": key, "number": phase.number, "started": phase.started, "peak": 0.0}
            conn.execute(insert(tables.phases).values(**place, covariates=covariates))
    return known


def _new_etag() -> str:
    return secrets.token_hex(8)


def read_phase_info(conn: Connection, phases: Phases, name: str, number: int) -> PhaseInfo:
    """Raises ExperimentNotFound, naming the phases that there are."""
    found = phases.named(conn, {name})
    if (name, number) not in found:
        read_experiment(conn, name)
        there = ", ".join(str(n) for _, n in sorted(found)) or "none"
        raise ExperimentNotFound(name, f": phase {number} is not there, there are: {there}")
    return found[name, number]


def read_phase_data(conn: Connection, info: PhaseInfo, only_differing: bool = False) -> PhaseData:
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
        here[key] = _added(here[key], cell) if key in here else cell
    return found


def _moments(n: int, numbers: Sequence[float], columns: int) -> Moments:
    starts = ((0, 1), (COLUMNS, 2), (COLUMNS + PRODUCTS, 3))
    parts = (tuple(numbers[at : at + len(places(columns, power))]) for at, power in starts)
    return Moments(n, *parts)


def _added(one: Cell, other: Cell) -> Cell:
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
    for table in _OF_PHASES:
        conn.execute(delete(table).where(bulk.among(table.c.phase, phases)))
    conn.execute(delete(tables.phases).where(bulk.among(tables.phases.c.id, phases)))


def _remove_waiting(conn: Connection, now: float) -> bool:
    of = tables.outcomes.c
    response = _removal_of_some((of.response_id != "") & (of.received < now - RESPONSE_WAITS))
    unit = _removal_of_some(of.received < now - UNIT_WAITS)
    return sum(conn.execute(query).rowcount for query in (response, unit)) > 0


def _removal_of_some(which: ColumnElement[bool]) -> Delete:
    table = tables.outcomes
    keys = select(table.c.key).where(tables.WAITING, which).limit(CHUNK)
    return delete(table).where(tables.WAITING, table.c.key.in_(keys))
