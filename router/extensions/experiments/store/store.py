"""The store of experiments: a database, SQLite in a file or PostgreSQL.

Every call blocks: call it from a thread, never from the event loop. Every call raises StoreDown where the
database cannot be reached; what was acknowledged before is kept.

A stated rule: an outcome counts for a unit if its time is not after the unit's first exposure plus `window`,
and if it came (`StoredOutcome.received`, by the server's clock; 0: at once) not after that plus `grace`.
Else it is LATE: kept, not counted, nor as the unit's past. So nothing changes the value of a unit that may
be judged.

Old rows are removed some thousand at a time, so that no call waits long for it: rows of deleted experiments;
and outcomes that wait: those of a response for a day (its exposure is written within seconds, or never),
those of a unit for 35 days, as the past of experiments to come.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    delete,
    func,
    insert,
    select,
    update,
)

from router.errors import AlreadyExists, ConfigError, ExperimentNotFound, StaleEtag, StoreDown
from router.extensions.experiments.model import (
    Accepted,
    AuditEntry,
    Experiment,
    Exposure,
    StoredOutcome,
)
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.recording import expose, record
from router.extensions.experiments.store.schema import check_version, migrate
from router.extensions.experiments.store.series import (
    PhaseData,
    PhaseInfos,
    read_phase_data,
)
from router.extensions.experiments.store.session import WriteSession
from router.extensions.experiments.store.tables import (
    WAITING,
    experiments,
    from_json,
    outcomes,
    phases,
    to_json,
)
from router.shared import database
from router.shared.database import Bulk, bulk_for, parse_url, shown_url, translated

log = logging.getLogger(__name__)
FILE = "experiments.db"  # in a server's state folder, where no database is set
TIDY_SECONDS = 3600.0
CHUNK = 2000  # rows that one step removes
RESPONSE_WAITS, UNIT_WAITS = 86_400.0, 35 * 86_400.0  # seconds
MAX_WAITING = 1_000_000  # rows, each of about a kilobyte
COUNT_SECONDS, FULL_SECONDS = 60.0, 5.0  # between two counts; where none more may wait
_OF_PHASES = (tables.digests, tables.cohorts, tables.sums)


class ExperimentStore:
    """Any thread may call it. What a call wrote is on disk when it returns.

    The URL, its driver and the file are checked at once: ConfigError says what to do. A server that cannot
    be reached is no error here: calls raise StoreDown until it is back, and then work. With `migrate` False a
    database of this version must be there, and is only read: ConfigError and StoreDown come at once.
    `max_waiting` outcomes may wait for their response or unit.
    """

    def __init__(self, url: str, migrate: bool = True, max_waiting: int = MAX_WAITING) -> None:
        self._url, self._read_only = parse_url(url, must_exist=not migrate), not migrate
        self._engine = database.make_engine(self._url, self._read_only)
        self._bulk = bulk_for(self._engine.dialect.name)
        self._phases, self._waiting = PhaseInfos(self._bulk), WaitingRows(max_waiting)
        self._alone = threading.Lock()  # threads of one process queue here, not in the database
        self._ready, self._tidied = False, 0.0
        try:
            self._prepare(starting=True)
        except StoreDown as error:
            if self._read_only:
                self.close()
                raise
            log.warning("%s; experiments wait until it is back", error.message)
        except BaseException:
            self.close()
            raise

    def _prepare(self, starting: bool = False) -> None:
        if self._ready:
            return
        opened = database.reading if self._read_only else database.writing
        with translated(self._url, starting), opened(self._engine) as conn:
            if self._read_only:
                check_version(conn)
            else:
                self._migrate(conn, starting)
        self._ready = True

    def _migrate(self, conn: Connection, starting: bool) -> None:
        try:
            migrate(conn)
        except ConfigError as error:
            if starting:
                raise
            raise StoreDown(error.message) from error

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._read_only:
            raise RuntimeError("this store was opened to be read only")
        if not self._alone.acquire(timeout=2 * database.WAIT_SECONDS):
            raise StoreDown(f"the store {shown_url(self._url)}: other writers take too long")
        try:
            self._prepare()
            with translated(self._url), database.writing(self._engine) as conn:
                yield conn
        finally:
            self._alone.release()

    @contextmanager
    def _session(self) -> Iterator[WriteSession]:
        with self._writing() as conn:
            yield WriteSession(conn, self._bulk, self._phases)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state throughout. Raises StoreDown."""
        if not self._ready:
            with self._writing():
                pass
        with translated(self._url), database.reading(self._engine) as conn:
            yield conn

    def close(self) -> None:
        """Let connections go; the next call makes new ones."""
        self._engine.dispose()

    # -- experiments, salts and the audit trail

    def salt(self, purpose: str) -> str:
        """The server's own salt for `holdout` or `namespace:NAME`: made once, kept for ever."""
        of = tables.salts.c
        with self._writing() as conn:
            found = conn.execute(select(of.salt).where(of.purpose == purpose)).scalar()
            if found is None:
                found = secrets.token_hex(16)
                conn.execute(insert(tables.salts).values(purpose=purpose, salt=found))
            return str(found)

    def create(self, experiment: Experiment) -> Experiment:
        """Keep it, with an etag. Raises AlreadyExists."""
        of = experiments.c
        with self._writing() as conn:
            if conn.execute(select(of.id).where(of.name == experiment.name)).scalar() is not None:
                text = f"{experiment.resource} exists already"
                raise AlreadyExists(text, resource=experiment.resource)
            kept = replace(experiment, etag=_new_etag())
            row = insert(experiments).values(name=kept.name, etag=kept.etag, document=to_json(kept))
            _keep_phases(conn, conn.execute(row.returning(of.id)).scalar_one(), kept)
        return kept

    def get(self, name: str) -> Experiment:
        """Raises ExperimentNotFound."""
        with self.reading() as conn:
            row = _experiment_row(conn, name)
        return from_json(row.document, row.etag)

    def list(self) -> tuple[Experiment, ...]:
        """All, by name."""
        of = experiments.c
        with self.reading() as conn:
            rows = conn.execute(select(of.document, of.etag).where(of.name.is_not(None))).all()
        found = (from_json(row.document, row.etag) for row in rows)
        return tuple(sorted(found, key=lambda e: e.name))  # not in SQL: databases sort text in their own ways

    def replace(self, experiment: Experiment, audit: AuditEntry) -> Experiment:
        """Put it in place of the one with the same etag, and keep the audit entry with it. Raises
        ExperimentNotFound, StaleEtag."""
        with self._writing() as conn:
            row = _experiment_row(conn, experiment.name)
            _check_etag(row, experiment.etag)
            kept = replace(experiment, etag=_new_etag())
            changed = update(experiments).where(experiments.c.id == row.id)
            conn.execute(changed.values(etag=kept.etag, document=to_json(kept)))
            _append_audit(conn, audit)
            _keep_phases(conn, row.id, kept)
        return kept

    def delete(self, name: str, etag: str = "") -> None:
        """Forget it and all that was logged of it. Its name goes now, and no reader sees its rows; `tidy`
        removes them, some at a time. Raises ExperimentNotFound, StaleEtag."""
        with self._writing() as conn:
            row = _experiment_row(conn, name)
            _check_etag(row, etag or row.etag)
            gone = update(experiments).where(experiments.c.id == row.id)
            conn.execute(gone.values(name=None, document="", etag=""))
            conn.execute(delete(tables.audit).where(tables.audit.c.experiment == name))
        self._tidied = 0.0

    def audit(self, entry: AuditEntry) -> None:
        """Keep an act."""
        with self._writing() as conn:
            _append_audit(conn, entry)

    def trail(self, name: str) -> tuple[AuditEntry, ...]:
        """All acts on an experiment, oldest first."""
        of = tables.audit.c
        found = select(of.experiment, of.time, of.actor, of.act, of.reason, of.detail)
        with self.reading() as conn:
            rows = conn.execute(found.where(of.experiment == name).order_by(of.time, of.id)).all()
        return tuple(AuditEntry(*row[:-1], detail=json.loads(row[-1])) for row in rows)

    # -- what answers and clients leave behind

    def expose(self, exposures: Sequence[Exposure]) -> None:
        """Keep them; the same response again changes nothing. Some thousand at a time are written fastest.

        Arm, window and segments of a unit are those of the exposure of it that was kept first. Outcomes
        that came before their exposure are counted now. Exposures of a phase that is not there (any more)
        are dropped with a warning.
        """
        if exposures:
            with self._session() as session:
                expose(session, exposures)
            self.tidy()

    def record(self, outcomes: Sequence[StoredOutcome]) -> tuple[Accepted, ...]:
        """Count them, in order. Some thousand at a time are written fastest.

        A key that was there already is DUPLICATE if it was counted, and else what it was before (LATE,
        UNKNOWN). An outcome of a response counts in every phase the response was exposed in; one of a unit
        in the last phase whose exposure of that unit is not after it. UNKNOWN ones are kept for a while:
        they count when their exposure comes, and as covariates. Where as many are kept as may be they are
        NOT_KEPT.
        """
        if not outcomes:
            return ()
        with self._session() as session:
            found = record(session, outcomes, self._waiting.room(session.conn))
            self._waiting.add(sum(status is Accepted.UNKNOWN for status in found))
        self.tidy()
        return found

    # -- the sums of a phase

    def data(self, name: str, phase: int) -> PhaseData:
        """The sums of one phase."""
        with self.reading() as conn:
            return read_phase_data(conn, self._phases.one(conn, name, phase))

    def set_peak(self, name: str, phase: int, peak: float) -> None:
        """Remember the largest evidence of the sample-ratio test: an alarm stays."""
        of = phases.c
        with self._writing() as conn:
            key = self._phases.one(conn, name, phase).id
            conn.execute(update(phases).where(of.id == key, of.peak < peak).values(peak=peak))

    def tidy(self) -> None:
        """One step of removal, as long as there is something to remove, then once an hour. When all is
        removed, SQLite's write-ahead log is emptied, too; a reader of another program delays that."""
        now = time.time()
        if now - self._tidied < TIDY_SECONDS:
            return
        try:
            with self._writing() as conn:
                more = remove_some(conn, self._bulk, now)
            if not more:
                with translated(self._url):
                    more = not database.empty_log(self._engine)
        except StoreDown as error:  # the batch is kept; the next one tries again
            log.warning("%s; old rows are removed later", error.message)
            return
        self._tidied = 0.0 if more else now


class WaitingRows:
    """How many outcomes may wait for their response or unit: any client can make those, so they are bounded.

    `most` rows may wait. They are counted now and then, and added up in between: rows that found their
    exposure or were removed, and those of other servers, show at the next count. One writer at a time.
    """

    def __init__(self, most: int = MAX_WAITING, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._rows, self._counted = 0, float("-inf")

    def room(self, conn: Connection) -> int:
        """How many more may wait."""
        after = FULL_SECONDS if self._rows >= self._most else COUNT_SECONDS
        if self._now() - self._counted >= after:
            some = select(outcomes.c.received).where(WAITING).limit(self._most).subquery()
            query = select(func.count()).select_from(some)  # of an index of those that wait, and no further
            self._rows, self._counted = conn.execute(query).scalar_one(), self._now()
        return max(self._most - self._rows, 0)

    def add(self, rows: int) -> None:
        """So many more wait."""
        self._rows += rows


def _new_etag() -> str:
    return secrets.token_hex(8)


def _experiment_row(conn: Connection, name: str) -> Any:
    of = experiments.c
    found = conn.execute(select(of.id, of.document, of.etag).where(of.name == name)).one_or_none()
    if found is None:
        raise ExperimentNotFound(name)
    return found


def _check_etag(row: Any, etag: str) -> None:
    if row.etag != etag:
        raise StaleEtag("the experiment changed since it was read: read it again, then change it")


def _append_audit(conn: Connection, entry: AuditEntry) -> None:
    row = insert(tables.audit).values(
        experiment=entry.experiment,
        time=entry.time,
        actor=entry.actor,
        act=entry.act,
        reason=entry.reason.replace("\0", ""),  # what people write; PostgreSQL has no NUL
        detail=json.dumps(entry.detail, default=str),
    )
    conn.execute(row)


def _keep_phases(conn: Connection, key: int, experiment: Experiment) -> None:
    """Rows for those that are new."""
    of = phases.c
    there = set(conn.execute(select(of.number).where(of.experiment == key)).scalars())
    for phase in experiment.phases:
        if phase.number not in there:
            place = {"experiment": key, "number": phase.number, "started": phase.started, "peak": 0.0}
            conn.execute(insert(phases).values(**place))


def remove_some(conn: Connection, bulk: Bulk, now: float) -> bool:
    """One step in one transaction. Whether something was removed: then there may be more."""
    return _remove_deleted(conn, bulk) or _remove_waiting(conn, now)


def _remove_deleted(conn: Connection, bulk: Bulk) -> bool:
    of = experiments.c
    key = conn.execute(select(of.id).where(of.name.is_(None)).limit(1)).scalar()
    if key is None:
        return False
    own = conn.execute(select(phases.c.id).where(phases.c.experiment == key)).scalars().all()
    here = bulk.among(tables.units.c.phase, own)
    units = conn.execute(select(tables.units.c.id).where(here).limit(CHUNK)).scalars().all()
    if units:
        for column in (tables.exposures.c.unit_id, outcomes.c.unit_id, tables.values.c.unit_id):
            conn.execute(delete(column.table).where(bulk.among(column, units)))
        conn.execute(delete(tables.units).where(bulk.among(tables.units.c.id, units)))
        return True
    for table in _OF_PHASES:
        conn.execute(delete(table).where(bulk.among(table.c.phase, own)))
    conn.execute(delete(phases).where(bulk.among(phases.c.id, own)))
    conn.execute(delete(experiments).where(of.id == key))
    return True


def _remove_waiting(conn: Connection, now: float) -> bool:
    of = outcomes.c
    response = _removal_of_some((of.response_id != "") & (of.received < now - RESPONSE_WAITS))
    unit = _removal_of_some(of.received < now - UNIT_WAITS)
    return sum(conn.execute(query).rowcount for query in (response, unit)) > 0


def _removal_of_some(which: ColumnElement[bool]) -> Delete:
    keys = select(outcomes.c.key).where(WAITING, which).limit(CHUNK)
    return delete(outcomes).where(WAITING, outcomes.c.key.in_(keys))
