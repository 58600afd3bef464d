"""Units, outcomes, values and pairs of a phase as files: Parquet, CSV or JSONL, by the file's suffix.

One snapshot of the database, read some ten thousand rows at a time. Files are written beside their names
and take them at the end: a full disk or Ctrl-C leaves nothing. Units are hashes.
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
from router.experiments.store import tables
from router.experiments.store.schema import VIEWS, ColumnType
from router.experiments.store.store import ExperimentStore

ALL = "all"
BATCH = 50_000  # rows
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = (  # of PostgreSQL with one transaction that only reads
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = '10min'",
)
Columns: TypeAlias = Sequence[tuple[str, ColumnType]]
Batches: TypeAlias = Iterable[Sequence[Sequence[Any]]]
Progress: TypeAlias = Callable[[str, int], None]


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
    *,
    overwrite: bool = False,
    form: str = "parquet",
) -> tuple[Exported, ...]:
    """Write units, outcomes, values or pairs (`what`) to a file, or `all` of them into a folder.

    `source`: the store, or its URL. `phase` None: the last one. In a folder files are called WHAT.FORM.
    `progress` is told what is written and how many rows so far. Raises ConfigError for what cannot be done,
    FailedPrecondition where a file is there, ExperimentNotFound, StoreDown, and ResourceExhausted where the
    disk is full; then nothing was written.
    """
    targets = _targets(what, path, form)
    for target in targets.values():
        _ready(target, overwrite)
    done = []
    with _snapshot(source) as conn, _folder(path, what == ALL), _Files(overwrite) as files:
        name = experiment.removeprefix("experiments/")
        key, number = _phase(conn, name, phase)
        for kind, target in targets.items():
            columns = [(column.name, column.holds) for column in VIEWS[kind].columns]
            about = {"experiment": name, "phase": str(number), "what": kind}
            with closing(_batches(conn, kind, key)) as batches:
                count = _Counting(batches, kind, progress)
                size = files.write(target, _encoded(target, columns, about, count))
            done.append(Exported(target, count.rows, size))
    return tuple(done)


def _targets(what: str, path: Path, form: str) -> dict[str, Path]:
    """What -> the file."""
    if what not in (*VIEWS, ALL):
        raise ConfigError(f"{what!r} cannot be exported; known are {', '.join(VIEWS)} and {ALL}")
    if what == ALL and path.suffix in FORMS and not path.is_dir():
        raise ConfigError(
            f"{path}: all go into a folder, and this is a file's name; name one of {', '.join(VIEWS)}"
        )
    if what == ALL or path.is_dir():
        return {name: path / f"{name}.{form}" for name in (VIEWS if what == ALL else (what,))}
    return {what: path}


def _ready(target: Path, overwrite: bool) -> None:
    """Before anything is read: a file that can be written here."""
    if target.suffix not in FORMS:
        raise ConfigError(f"{target}: what shall it be? The name must end with {', '.join(FORMS)}")
    if target.suffix == ".parquet":
        pyarrow(target)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder")
    if target.exists() and not overwrite:
        raise _there(target)


def pyarrow(path: Path, part: str = "") -> Any:
    """The package, or a module of it. Raises ConfigError where it is missing."""
    try:
        return import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ModuleNotFoundError as error:
        text = f"Parquet needs pyarrow (or use a .csv or .jsonl file): {install_extra('export')}"
        raise ConfigError(f"{path.name}: {text}") from error


def _there(target: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"{target} is there already: name another file, or say that it may be overwritten"
    )


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

    def __init__(self, batches: Batches, what: str, progress: Progress | None) -> None:
        self.rows, self._batches, self._what, self._progress = 0, batches, what, progress

    def __iter__(self) -> Iterator[Sequence[Sequence[Any]]]:
        for batch in self._batches:
            yield batch
            self.rows += len(batch)
            if self._progress:
                self._progress(self._what, self.rows)


class _Files:
    """Files that take their names together when the block ends well; else they are removed."""

    def __init__(self, overwrite: bool) -> None:
        self._overwrite, self._written = overwrite, 0
        self._parts: dict[Path, Path] = {}  # target -> what is written beside it

    def __enter__(self) -> _Files:
        return self

    def write(self, target: Path, data: Iterable[bytes]) -> int:
        """The number of bytes, which are on the disk."""
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        before, self._parts[target] = self._written, part
        with self._explained(target):
            file = part.open("xb", buffering=0)  # what is not written yet is nowhere, when the disk is full
        with file:
            for some in data:
                with self._explained(target):
                    self._put(file, some)
            with self._explained(target):
                os.fsync(file.fileno())
        return self._written - before

    def _put(self, file: io.FileIO, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = file.write(left)
            self._written += count
            left = left[count:]

    @contextmanager
    def _explained(self, target: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nothing = f"more than {self._written / 1e6:,.1f} MB are needed. Nothing was written to {target}"
            if error.errno in FULL:
                text = f"the disk is full: {nothing}: free some space, or name a file on another disk"
                raise ResourceExhausted(text) from error
            if error.errno == errno.EFBIG:
                text = f"no file may be so large here (`ulimit -f`, or the file system): {nothing}"
                raise ResourceExhausted(text) from error
            raise OSError(error.errno, error.strerror, str(target)) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for part in self._parts.values():
                part.unlink(missing_ok=True)

    def _publish(self) -> None:
        for target in self._parts:
            if target.exists() and not self._overwrite:
                raise _there(target)
        for target, part in self._parts.items():
            part.replace(target)


@contextmanager
def _folder(path: Path, wanted: bool) -> Iterator[None]:
    """Made where it is wanted and not there; gone again if nothing came into it."""
    made = wanted and not path.exists()
    if made:
        path.mkdir()
    try:
        yield
    except BaseException:
        if made:
            path.rmdir()
        raise


def _encoded(target: Path, columns: Columns, about: Mapping[str, str], batches: Batches) -> Iterator[bytes]:
    return FORMS[target.suffix](columns, {**about, "lora_router_version": __version__}, batches)


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
