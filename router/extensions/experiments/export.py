"""Units, outcomes, values and pairs of a phase as files: Parquet, CSV or JSONL, by the file's suffix.

One snapshot of the database, read some ten thousand rows at a time. A file is written beside its name and
takes it at the end: a full disk or Ctrl-C leaves nothing. Units are hashes.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Row, select

from router import __version__
from router.errors import (
    ConfigError,
    ExperimentNotFound,
    FailedPrecondition,
    ResourceExhausted,
    install_extra,
)
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.schema import VIEWS, ColumnType
from router.extensions.experiments.store.store import ExperimentStore

BATCH = 50_000  # rows
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = (  # of PostgreSQL with one transaction that only reads
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = '10min'",
)
Columns: TypeAlias = Sequence[tuple[str, ColumnType]]
Batches: TypeAlias = Iterable[Sequence[Sequence[Any]]]
Progress: TypeAlias = Callable[[int], None]


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
    progress: Progress | None = None,
) -> Exported:
    """Write units, outcomes, values or pairs (`what`) to a new file.

    `source`: the store, or its URL. `phase` None: the last one. `progress` gets the number of rows
    written so far. Raises ConfigError for what cannot be done, FailedPrecondition where a file is there,
    ExperimentNotFound, StoreDown, and ResourceExhausted where the disk is full; then nothing was written.
    """
    if what not in VIEWS:
        raise ConfigError(f"{what!r} cannot be exported; known are {', '.join(VIEWS)}")
    if path.suffix not in FORMS:
        raise ConfigError(f"{path}: what shall it be? The name must end with {', '.join(FORMS)}")
    if path.suffix == ".parquet":
        pyarrow(path)
    _check_new(path)
    name = experiment.removeprefix("experiments/")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with _snapshot(source) as conn:
        key, number = _phase(conn, name, phase)
        columns = [(column.name, column.holds) for column in VIEWS[what].columns]
        about = {"experiment": name, "phase": str(number), "what": what, "lora_router_version": __version__}
        with closing(_batches(conn, what, key)) as batches:
            count = _Counting(batches, progress)
            try:
                size = _write(part, path, FORMS[path.suffix](columns, about, count))
                _check_new(path)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    return Exported(path, count.rows, size)


def _check_new(path: Path) -> None:
    if path.exists():
        raise FailedPrecondition(f"{path} is there already: name another file")


def _write(part: Path, path: Path, data: Iterable[bytes]) -> int:
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


def pyarrow(path: Path, part: str = "") -> Any:
    """The package, or a module of it. Raises ConfigError where it is missing."""
    try:
        return import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ModuleNotFoundError as error:
        text = f"Parquet needs pyarrow (or use a .csv or .jsonl file): {install_extra('export')}"
        raise ConfigError(f"{path.name}: {text}") from error


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


def _phase(conn: Connection, name: str, number: int | None) -> tuple[int, int]:
    """The phase's id and number. Raises ExperimentNotFound, naming the phases that there are."""
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
    return found[wanted], wanted


def _batches(conn: Connection, what: str, phase: int) -> Generator[Sequence[Row[Any]]]:
    """Close it before the transaction ends: it holds a cursor there."""
    query = VIEWS[what].query.where(tables.phases.c.id == phase)
    with conn.execute(query.execution_options(yield_per=BATCH)) as result:
        yield from result.partitions()


class _Counting:
    """Batches, whose rows are counted and told."""

    def __init__(self, batches: Batches, progress: Progress | None) -> None:
        self.rows, self._batches, self._progress = 0, batches, progress

    def __iter__(self) -> Iterator[Sequence[Sequence[Any]]]:
        for batch in self._batches:
            yield batch
            self.rows += len(batch)
            if self._progress:
                self._progress(self.rows)


def _parquet(columns: Columns, about: Mapping[str, str], batches: Batches) -> Iterator[bytes]:
    """Into memory, a batch at a time: what goes wrong with the disk is then nothing that Arrow sees."""
    arrow, sink = pyarrow(Path()), io.BytesIO()
    types = _arrow_types(arrow)
    schema = arrow.schema([(name, types[holds]) for name, holds in columns], metadata=about)
    with pyarrow(Path(), "parquet").ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in batches:
            found = zip(*batch, strict=True)
            arrays = [
                arrow.array(_arrow_cells(holds, cells), types[holds])
                for (_, holds), cells in zip(columns, found, strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            yield _taken(sink)
    yield _taken(sink)


def _arrow_types(arrow: Any) -> dict[ColumnType, Any]:
    return {
        ColumnType.TEXT: arrow.string(),
        ColumnType.INTEGER: arrow.int64(),
        ColumnType.NUMBER: arrow.float64(),
        ColumnType.FLAG: arrow.bool_(),
        ColumnType.TIME: arrow.timestamp("us", "UTC"),
    }


def _arrow_cells(holds: ColumnType, cells: Sequence[Any]) -> Sequence[Any]:
    if holds is ColumnType.TIME:
        return [_ticks(cell) for cell in cells]
    return [bool(cell) for cell in cells] if holds is ColumnType.FLAG else cells


def _taken(sink: io.BytesIO) -> bytes:
    found = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return found


def _csv(columns: Columns, _about: Mapping[str, str], batches: Batches) -> Iterator[bytes]:
    flags = ("false", "true")
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(name for name, _ in columns)
    for batch in batches:
        out.writerows(_plain(columns, batch, flags))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _jsonl(columns: Columns, _about: Mapping[str, str], batches: Batches) -> Iterator[bytes]:
    names = [name for name, _ in columns]
    for batch in batches:
        rows = (dict(zip(names, row, strict=True)) for row in _plain(columns, batch, (False, True)))
        yield "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in rows).encode()


def _plain(
    columns: Columns, batch: Sequence[Sequence[Any]], flags: tuple[Any, Any]
) -> Iterator[Sequence[Any]]:
    """Rows with times as ISO 8601 and flags as these."""
    found: list[Sequence[Any]] = list(zip(*batch, strict=True))
    for i, (_, holds) in enumerate(columns):
        if holds is ColumnType.TIME:
            found[i] = [_iso(cell) for cell in found[i]]
        elif holds is ColumnType.FLAG:
            found[i] = [flags[bool(cell)] for cell in found[i]]
    return zip(*found, strict=True)


def _ticks(seconds: float) -> int:
    """Microseconds since 1970."""
    return round(seconds * 1e6)


def _iso(seconds: float) -> str:
    moment = EPOCH + timedelta(microseconds=_ticks(seconds))
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


FORMS: Mapping[str, Callable[[Columns, Mapping[str, str], Batches], Iterator[bytes]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}
