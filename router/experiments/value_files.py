"""Values that were computed elsewhere, by unit: out of a CSV, JSONL or Parquet file, in batches.

Columns are `unit` (as in the request) or `unit_hash`, `metric`, `value`, and perhaps `time` (unix seconds, or
ISO 8601 with an offset) and `key`; no others, so that a misspelt one is not passed over. Every row that is
wrong is named. A file may be sent again: without a `key` column a row's key is made from what it says.
"""

from __future__ import annotations

import csv
import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from router.errors import ConfigError, FieldViolation, InvalidRequest, install_extra
from router.units import is_missing, unit_hash

BATCH = 1000
NAMED = 100  # bad rows that an error has; the rest is counted
NEEDED, UNITS, PERHAPS = {"metric", "value"}, ("unit", "unit_hash"), {"time", "key"}
MOST = {"unit": 256, "metric": 63, "key": 128}  # bytes, as the server takes them
EARLIEST, LATEST = 946_684_800.0, 253_402_300_799.0  # unix seconds of the years 2000 to 9999
_HASH = re.compile(r"[0-9a-f]{32}")
_ARROW_ROWS = 10_000


Parsers: TypeAlias = Mapping[str, Callable[[Any], Any]]


class FileValue(NamedTuple):
    """One row: of `unit`, or of the unit with `unit_hash`. `row` is its line, or its number in Parquet."""

    row: int
    metric: str
    value: float
    unit: str = ""
    unit_hash: str = ""
    time: float | None = None
    key: str = ""


class CheckedFile(NamedTuple):
    """A file without a fault. `repeated` rows have the key of another row: only one of those counts."""

    rows: int
    repeated: int


class BadFile(InvalidRequest):
    """What is wrong with a file, row by row: the first 100 are in `violations`, `total` is of all."""

    reason = "BAD_FILE"

    def __init__(self, violations: list[FieldViolation], total: int) -> None:
        super().__init__(violations)
        self.violations = tuple(violations)  # more than a status names: these are for the command line
        first = [f"{v.field}: {v.description}" for v in violations[:3]]
        self.total = total
        self.message = "; ".join([*first, *([f"and {total - 3:,} more"] if total > 3 else [])])
        self.args = (self.message,)


class FileRow(NamedTuple):
    """A row of a file as it stands there, or what is wrong with it as a whole."""

    number: int
    cells: Mapping[str, Any]
    problem: str = ""


def no_problem(_name: str) -> str:
    """Any name may be a metric's."""
    return ""


def check_values(
    path: Path, experiment: str, metric_problem: Callable[[str], str] = no_problem
) -> CheckedFile:
    """Read all of it. Raises BadFile, ConfigError, OSError as `read_values` does."""
    keys = array("Q")
    for batch in read_values(path, experiment, metric_problem):
        keys.extend(int.from_bytes(sha256(value.key.encode()).digest()[:8], "big") for value in batch)
    return CheckedFile(len(keys), len(keys) - len(np.unique(np.frombuffer(keys, np.uint64))))


def read_values(
    path: Path, experiment: str, metric_problem: Callable[[str], str] = no_problem
) -> Iterator[list[FileValue]]:
    """Batches in the file's order. `metric_problem` says why no outcome may be called so; empty: it may.

    Raises BadFile when all was read, and then yields no more from the first bad row on: `check_values`
    first, so that nothing is sent of a file with a fault. ConfigError for a file of another kind.
    """
    found, batch, parsers = FileFindings(path), list[FileValue](), _parsers(metric_problem)
    of = experiment.removeprefix("experiments/")
    for row in read_rows(path):
        if row.problem:
            found.add(row.number, "", row.problem)
        elif problem := _columns_problem(row.cells):
            found.add_columns(row, problem)
            if found.one_header:
                break
        elif (value := _value(row, of, found, parsers)) and not found.total:
            batch.append(value)
        if len(batch) == BATCH:
            yield batch
            batch = []
    found.check()
    if batch:
        yield batch


class FileFindings:
    """What is wrong with a file."""

    def __init__(self, path: Path) -> None:
        self.total, self._path, self._named = 0, path, list[FieldViolation]()
        self.one_header = path.suffix.lower() not in LINES  # and else each row has its own columns

    def add(self, number: int, column: str, problem: str) -> None:
        """Of a row; number 0 for the file as a whole."""
        self.total += 1
        if len(self._named) < NAMED:
            place = f", row {number}" if self._path.suffix.lower() == PARQUET else f":{number}"
            column = f", column {column}" if column else ""
            field = f"{self._path.name}{place if number else ''}{column}"
            self._named.append(FieldViolation(field, problem))

    def add_columns(self, row: FileRow, problem: str) -> None:
        """Of the columns that a row has: where there is one header, of the file."""
        there = ", ".join(map(shown, row.cells))
        self.add(0 if self.one_header else row.number, "", f"{problem}; there are: {there}")

    def check(self) -> None:
        """Raises BadFile if anything was found."""
        if self.total:
            raise BadFile(self._named, self.total)


def read_rows(path: Path) -> Iterator[FileRow]:
    """Rows as they stand in the file, by its suffix. What is not UTF-8 is in them as lone surrogates.

    Raises ConfigError for another suffix, or without pyarrow; BadFile for a file without a row.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path.name}: what is it? Files that can be read end with {', '.join(_READERS)}")
    empty = True
    for row in reader(path):
        empty = False
        yield row
    if empty:
        raise BadFile([FieldViolation(path.name, "has no rows")], 1)


def _csv_rows(path: Path) -> Iterator[FileRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, strict=True)
        names: list[str] | None = None
        ended = 0
        try:
            for cells in lines:
                number, ended = ended + 1, lines.line_num  # a quoted cell may have several lines
                if names is None:
                    names = cells
                    if len(set(names)) < len(names):
                        yield FileRow(number, {}, "two columns have the same name")
                        return
                elif cells and len(cells) != len(names):
                    yield FileRow(number, {}, f"has {len(cells)} cells, the header {len(names)}")
                elif cells:
                    yield FileRow(number, dict(zip(names, cells, strict=True)))
        except csv.Error as error:
            yield FileRow(lines.line_num, {}, f"is no CSV from here on: {error}")


def _json_rows(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").strip()
            if text:
                yield _json_row(number, text)


def _json_row(number: int, text: str) -> FileRow:
    try:
        cells = json.loads(text)
    except (ValueError, RecursionError) as error:
        return FileRow(number, {}, f"is not JSON: {error}")
    return FileRow(number, cells) if isinstance(cells, dict) else FileRow(number, {}, "is no JSON object")


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    arrow, parquet = pyarrow(path), pyarrow(path, "parquet")
    number = 0
    with path.open("rb") as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(_ARROW_ROWS):
                columns = [_cells(arrow, column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield FileRow(number, dict(zip(batch.schema.names, cells, strict=True)))
        except (arrow.ArrowException, OSError) as error:
            yield FileRow(number + 1, {}, f"is no Parquet from here on: {error}")


def pyarrow(path: Path, part: str = "") -> Any:
    """The package, or a module of it. Raises ConfigError where it is missing."""
    try:
        return import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ModuleNotFoundError as error:
        text = f"Parquet needs pyarrow (or use a .csv or .jsonl file): {install_extra('export')}"
        raise ConfigError(f"{path.name}: {text}") from error


def _cells(arrow: Any, column: Any) -> list[Any]:
    """Texts as texts whatever their bytes, times with a zone as unix seconds."""
    is_, kind = arrow.types, column.type
    if is_.is_dictionary(kind):
        return _cells(arrow, column.dictionary_decode())
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_binary(kind) or is_.is_large_binary(kind):
        found = column.cast(arrow.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in found]
    if is_.is_timestamp(kind):
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False)
        if kind.tz is not None:
            ticks = column.cast(arrow.int64()).to_pylist()
            return [None if cell is None else cell / 1e6 for cell in ticks]
    cells: list[Any] = column.to_pylist()
    return cells


PARQUET = ".parquet"
LINES = (".jsonl", ".ndjson")
_READERS: Mapping[str, Callable[[Path], Iterator[FileRow]]] = {
    ".csv": _csv_rows,
    **dict.fromkeys(LINES, _json_rows),
    PARQUET: _parquet_rows,
}


def _columns_problem(cells: Mapping[str, Any]) -> str:
    names = cells.keys()
    units = [name for name in UNITS if name in names]
    if missing := sorted(NEEDED - names) + ([] if units else ["unit or unit_hash"]):
        return f"has no column {', '.join(missing)}"
    if unknown := sorted(names - NEEDED - PERHAPS - set(UNITS)):
        return (
            f"column {shown(unknown[0])} is none of unit, unit_hash, metric, value, time, key; leave it out"
        )
    return "has both unit and unit_hash; leave one out" if len(units) > 1 else ""


def _value(row: FileRow, experiment: str, found: FileFindings, parsers: Parsers) -> FileValue | None:
    """None if a cell is wrong."""
    before, got = found.total, dict[str, Any]()
    for name, cell in row.cells.items():
        try:
            got[name] = parsers[name](cell)
        except ValueError as error:
            found.add(row.number, name, str(error))
    if found.total > before:
        return None
    hashed = got.get("unit_hash") or unit_hash(got["unit"])
    key = got.pop("key", "") or _made_key(experiment, hashed, got["metric"], got.get("time"))
    return FileValue(row.number, key=key, **got)


def _made_key(experiment: str, hashed: str, metric: str, time: float | None) -> str:
    """The same for the same experiment, unit, metric and time, from whatever file."""
    parts = (experiment, hashed, metric, "" if time is None else f"{time:.6f}")
    return f"row-{sha256(chr(31).join(parts).encode()).hexdigest()[:32]}"


def text_of(cell: Any, most: int = MOST["unit"]) -> str:
    """A cell as text; a whole number is its digits. Raises ValueError saying what is wrong."""
    if cell is None or cell == "":
        raise ValueError("is missing")
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise ValueError(f"is {shown(cell)}, not a text")
    text = str(cell)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"is {shown(cell)}, which is not UTF-8") from None
    if "\0" in text:
        raise ValueError("must not hold the character NUL")
    if size > most:
        raise ValueError(f"has {size} bytes, {most} are allowed")
    return text


def shown(cell: Any) -> str:
    """A cell in a message."""
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unit(cell: Any) -> str:
    unit = text_of(cell)
    if is_missing(unit):
        raise ValueError(f"is {shown(cell)}, a word for nobody")
    return unit


def _hash(cell: Any) -> str:
    text = text_of(cell)
    if not _HASH.fullmatch(text):
        raise ValueError(f"is {shown(cell)}, not the 32 hexadecimal digits of a hash")
    return text


def _metric(problem: Callable[[str], str], cell: Any) -> str:
    name = text_of(cell, MOST["metric"])
    if found := problem(name):
        raise ValueError(found)
    return name


def _key(cell: Any) -> str:
    return "" if cell is None or cell == "" else text_of(cell, MOST["key"])


def _number(cell: Any) -> float:
    if cell is None or cell == "":
        raise ValueError("is missing")
    wrong = f"is {shown(cell)}, not a number"
    if isinstance(cell, bool):
        raise ValueError(f"{wrong}: write 1 or 0")
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(wrong) from None
    if not math.isfinite(number) or (isinstance(cell, str) and "_" in cell):
        raise ValueError(wrong if math.isfinite(number) else f"is {shown(cell)}, not a finite number")
    return number


def _time(cell: Any) -> float | None:
    if cell is None or cell == "":
        return None
    time = _seconds(cell)
    if not EARLIEST <= time <= LATEST:
        raise ValueError(f"is {shown(cell)}, not unix seconds of the years 2000 to 9999 (milliseconds?)")
    return time


def _seconds(cell: Any) -> float:
    wrong = f"is {shown(cell)}, neither unix seconds nor a time such as 2026-07-01T12:00:00Z"
    try:
        return _number(cell)
    except ValueError:
        pass  # no number, but perhaps ISO 8601
    try:
        time = datetime.fromisoformat(cell) if isinstance(cell, str) else cell
    except ValueError:
        raise ValueError(wrong) from None
    if not isinstance(time, datetime):
        raise ValueError(wrong)
    if time.tzinfo is None:
        raise ValueError(
            f"is {time.isoformat()}, which has no offset: write {time.isoformat()}Z if it is UTC"
        )
    return time.timestamp()


def _parsers(metric_problem: Callable[[str], str]) -> Parsers:
    return {
        "unit": _unit,
        "unit_hash": _hash,
        "metric": partial(_metric, metric_problem),
        "value": _number,
        "time": _time,
        "key": _key,
    }
