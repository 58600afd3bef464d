"""The store of experiments in a database: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, update

from router.errors import ConfigError, StoreDown
from router.experiments.model import (
    Accepted,
    AuditEntry,
    Disagreement,
    Experiment,
    Exposure,
    Outcome,
    Pair,
)
from router.experiments.store import database, resources, waiting
from router.experiments.store.database import bulk_for, parse_url, shown_url, translated
from router.experiments.store.exposing import count_pairs, disagree, expose, keep_pairs
from router.experiments.store.migrating import check_version, migrate
from router.experiments.store.port import PairCounts, PhaseData
from router.experiments.store.recording import record
from router.experiments.store.series import Phases
from router.experiments.store.session import Session
from router.experiments.store.tables import phases
from router.experiments.store.views import make_views

log = logging.getLogger(__name__)
TIDY_SECONDS = 3600.0


class SqlStore:
    """Follows `port.Store`; any thread may call it. What a call wrote is on disk when it returns.

    The URL, its driver and the file are checked at once: ConfigError says what to do. A server that cannot
    be reached is no error here: calls raise StoreDown until it is back, and then work. With `migrate` False a
    database of this version must be there, and is only read: ConfigError and StoreDown come at once.
    `max_waiting` outcomes may wait for their response or unit.
    """

    def __init__(self, url: str, migrate: bool = True, max_waiting: int = waiting.MOST) -> None:
        self._url, self._read_only = parse_url(url, must_exist=not migrate), not migrate
        self._engine = database.make_engine(self._url, self._read_only)
        self._bulk = bulk_for(self._engine.dialect.name)
        self._phases, self._waiting = Phases(self._bulk), waiting.Waiting(max_waiting)
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
            make_views(conn)
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
    def _session(self) -> Iterator[Session]:
        with self._writing() as conn:
            yield Session(conn, self._bulk, self._phases)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state throughout. Raises StoreDown."""
        if not self._ready:
            with self._writing():
                pass
        with translated(self._url), database.reading(self._engine) as conn:
            yield conn

    def salt(self, purpose: str) -> str:
        """As the port says."""
        with self._writing() as conn:
            return resources.get_salt(conn, purpose)

    def create(self, experiment: Experiment) -> Experiment:
        """As the port says."""
        with self._writing() as conn:
            return resources.insert_experiment(conn, experiment)

    def get(self, name: str) -> Experiment:
        """As the port says."""
        with self.reading() as conn:
            return resources.read_experiment(conn, name)

    def list(self) -> tuple[Experiment, ...]:
        """As the port says."""
        with self.reading() as conn:
            return resources.read_experiments(conn)

    def replace(self, experiment: Experiment, audit: AuditEntry) -> Experiment:
        """As the port says."""
        with self._session() as session:
            return resources.replace_experiment(session, experiment, audit)

    def delete(self, name: str, etag: str = "") -> None:
        """As the port says. Its rows are removed by later calls, some at a time."""
        with self._writing() as conn:
            resources.forget_experiment(conn, name, etag)
        self._tidied = 0.0

    def expose(self, exposures: Sequence[Exposure]) -> None:
        """As the port says. Some thousand at a time are written fastest."""
        if exposures:
            with self._session() as session:
                expose(session, exposures)
            self._tidy()

    def record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        """As the port says. Some thousand at a time are written fastest."""
        if not outcomes:
            return ()
        with self._session() as session:
            found = record(session, outcomes, self._waiting.room(session.conn))
            self._waiting.add(sum(status is Accepted.UNKNOWN for status in found))
        self._tidy()
        return found

    def pairs(self, pairs: Sequence[Pair]) -> None:
        """As the port says."""
        with self._session() as session:
            keep_pairs(session, pairs)

    def disagree(self, found: Sequence[Disagreement]) -> None:
        """As the port says."""
        with self._session() as session:
            disagree(session, found)

    def data(self, name: str, phase: int) -> PhaseData:
        """As the port says."""
        with self.reading() as conn:
            return resources.read_phase_data(conn, resources.read_phase_info(conn, self._phases, name, phase))

    def triggered(self, name: str, phase: int) -> PhaseData:
        """As the port says."""
        with self.reading() as conn:
            info = resources.read_phase_info(conn, self._phases, name, phase)
            return resources.read_phase_data(conn, info, only_differing=True)

    def paired(self, name: str, phase: int) -> Mapping[str, PairCounts]:
        """As the port says."""
        with self.reading() as conn:
            return count_pairs(conn, resources.read_phase_info(conn, self._phases, name, phase))

    def set_peak(self, name: str, phase: int, peak: float) -> None:
        """As the port says."""
        with self._writing() as conn:
            of, info = phases.c, resources.read_phase_info(conn, self._phases, name, phase)
            conn.execute(update(phases).where(of.id == info.id, of.peak < peak).values(peak=peak))

    def audit(self, entry: AuditEntry) -> None:
        """As the port says."""
        with self._writing() as conn:
            resources.append_audit(conn, entry)

    def trail(self, name: str) -> tuple[AuditEntry, ...]:
        """As the port says."""
        with self.reading() as conn:
            return resources.read_trail(conn, name)

    def _tidy(self) -> None:
        """One step of removal after a batch: at every batch while there is something, else once an hour."""
        now = time.time()
        if now - self._tidied < TIDY_SECONDS:
            return
        try:
            with self._writing() as conn:
                more = resources.remove_some(conn, self._bulk, now)
        except StoreDown as error:  # the batch is kept; the next one tries again
            log.warning("%s; old rows are removed later", error.message)
            return
        self._tidied = 0.0 if more else now

    def close(self) -> None:
        """Let connections go; the next call makes new ones."""
        self._engine.dispose()
