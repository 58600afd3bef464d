"""Units, outcomes and values of a phase as CSV.

One snapshot of the database, read some ten thousand rows at a time. A file is written beside its name and
takes it at the end: a full disk or Ctrl-C leaves nothing. Units are hashes.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from router.errors import ConfigError, ExperimentNotFound, FailedPrecondition, ResourceExhausted
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.schema import VIEWS, ColumnType, ViewColumn
from router.extensions.experiments.store.store import ExperimentStore

BATCH = 50_000  # rows
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = (  # of PostgreSQL with one transaction that only reads
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = '10min'",
)


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    rows: int
    size: int  # bytes


def export(
    source: str | ExperimentStore,
    experiment: str,
    phase: int | None,
    what: str,
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write units, outcomes or values (`what`) to a new file.

    `source`: the store, or its URL. `phase` None: the last one. `progress` gets the number of rows
    written so far. Raises ConfigError for what cannot be done, FailedPrecondition where a file is there,
    ExperimentNotFound, StoreDown, and ResourceExhausted where the disk is full; then nothing was written.
    """
    if what not in VIEWS:
        raise ConfigError(f"{what!r} cannot be exported; known are {', '.join(VIEWS)}")
    if path.suffix != ".csv":
        raise ConfigError(f"{path}: the name must end with .csv")
    _check_new(path)
    part, rows = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part"), 0
    columns = VIEWS[what].columns

    def texts(batches: Iterator[Sequence[Row[Any]]]) -> Iterator[bytes]:
        nonlocal rows
        yield _csv([[column.name for column in columns]])
        for batch in batches:
            yield _csv(_plain(columns, batch))
            rows += len(batch)
            if progress is not None:
                progress(rows)

    with _snapshot(source) as conn:
        key = _phase(conn, experiment.removeprefix("experiments/"), phase)
        with closing(_batches(conn, what, key)) as batches:
            try:
                size = _write(part, path, texts(batches))
                _check_new(path)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    return Exported(path, rows, size)


def _check_new(path: Path) -> None:
    if path.exists():
        raise FailedPrecondition(f"{path} is there already: name another file")


def _write(part: Path, path: Path, data: Iterator[bytes]) -> int:
    """The number of bytes, which are on the disk."""
    written = 0
    try:
        with part.open(
            "xb", buffering=0
        ) as file:  # what is not written yet is nowhere, when the disk is full
            for some in data:
                left = memoryview(some)
                while left:
                    count = file.write(left)
                    written += count
                    left = left[count:]
            os.fsync(file.fileno())
    except OSError as error:
        nothing = f"more than {written / 1e6:,.1f} MB are needed. Nothing was written to {path}"
        if error.errno in FULL:
            text = f"the disk is full: {nothing}: free some space, or name a file on another disk"
            raise ResourceExhausted(text) from error
        if error.errno == errno.EFBIG:
            text = f"no file may be so large here (`ulimit -f`, or the file system): {nothing}"
            raise ResourceExhausted(text) from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    return written


@contextmanager
def _snapshot(source: str | ExperimentStore) -> Iterator[Connection]:
    """One state of the database, which is neither made nor changed."""
    if isinstance(source, ExperimentStore):
        with source.reading() as conn:
            for setting in PATIENCE if conn.dialect.name == "postgresql" else ():
                conn.exec_driver_sql(setting)
            yield conn
        return
    store = ExperimentStore(source, migrate=False)
    try:
        with _snapshot(store) as conn:
            yield conn
    finally:
        store.close()


def _phase(conn: Connection, name: str, number: int | None) -> int:
    """The phase's id. Raises ExperimentNotFound, naming the phases that there are."""
    of, owner = tables.phases.c, tables.experiments.c
    joined = tables.experiments.outerjoin(tables.phases, of.experiment == owner.id)
    query = select(of.number, of.id).select_from(joined).where(owner.name == name)
    rows = conn.execute(query).all()
    if not rows:
        raise ExperimentNotFound(name)
    found: dict[int, int] = {row.number: row.id for row in rows if row.id is not None}
    if not found:
        raise ExperimentNotFound(name, ": it was never started, so there is no phase of it")
    wanted = max(found) if number is None else number
    if wanted not in found:
        there = ", ".join(map(str, sorted(found)))
        raise ExperimentNotFound(name, f": phase {wanted} is not there, there are: {there}")
    return found[wanted]


def _batches(conn: Connection, what: str, phase: int) -> Generator[Sequence[Row[Any]]]:
    """Close it before the transaction ends: it holds a cursor there."""
    query = VIEWS[what].query.where(tables.phases.c.id == phase)
    with conn.execute(query.execution_options(yield_per=BATCH)) as result:
        yield from result.partitions()


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _plain(columns: Sequence[ViewColumn], batch: Sequence[Row[Any]]) -> Sequence[Sequence[Any]]:
    """Rows with times as ISO 8601, and flags as true and false."""
    found: list[Sequence[Any]] = list(zip(*batch, strict=True))
    for i, column in enumerate(columns):
        if column.holds is ColumnType.TIME:
            found[i] = [_iso(cell) for cell in found[i]]
        elif column.holds is ColumnType.FLAG:
            found[i] = ["true" if cell else "false" for cell in found[i]]
    return list(zip(*found, strict=True))


def _iso(seconds: float) -> str:
    moment = EPOCH + timedelta(microseconds=round(seconds * 1e6))
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
