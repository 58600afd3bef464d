"""Reads a file that somebody brings along: CSV, TSV, JSON lines or JSON, into named columns of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from router.errors import ConfigError
from router.training.new.json_rows import read_json, read_json_lines

DELIMITERS = (",", ";", "\t", "|")
SNIFFED = 50  # lines that must agree on a delimiter
LONGEST_FIELD = 1 << 20  # characters; beyond it a quote was left open


@dataclass(frozen=True, slots=True)
class Record:
    """One row: a text for each of its columns, and where it stands."""

    place: str  # FILE:LINE
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """A whole file."""

    columns: tuple[str, ...]
    records: tuple[Record, ...]


def read_table(path: Path) -> Table:
    """Read `path` by its suffix. Raises ConfigError that names the file and the line."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab", ".txt"):
        return _delimited(path, _text(path), "\t" if suffix in (".tsv", ".tab") else "")
    if suffix in (".jsonl", ".ndjson", ".json"):
        read = read_json if suffix == ".json" else read_json_lines
        records = tuple(Record(place, values) for place, values in read(path.name, _text(path)))
        return Table(tuple(dict.fromkeys(name for record in records for name in record.values)), records)
    raise ConfigError(f"{path}: cannot tell what it is by {suffix!r}; known: .csv, .tsv, .jsonl, .json")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path.name}:{line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        raise ConfigError(message) from error
    if "\0" in text:
        raise ConfigError(f"{path.name} holds zero bytes: it is no text, or UTF-16; save it as UTF-8")
    if not text.strip():
        raise ConfigError(f"{path.name} is empty")
    return text


def _delimited(path: Path, text: str, delimiter: str) -> Table:
    delimiter = delimiter or _sniff(text)
    lines = _lines(path.name, text, delimiter)
    _, header = next(lines)
    columns = tuple(name.strip() for name in header)
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(f"{path.name}: the first line names {', '.join(map(repr, twice))} more than once")
    records = []
    for number, fields in lines:
        if len(fields) != len(columns):
            raise ConfigError(
                f"{path.name}:{number} has {len(fields)} fields, the first line names {len(columns)}: "
                f"a text that holds {delimiter!r}, a quote or a line break stands in double quotes"
            )
        records.append(Record(f"{path.name}:{number}", dict(zip(columns, fields, strict=True))))
    return Table(columns, tuple(records))


def _lines(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number of the end, and fields, of every row that is not blank."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        message = f"{name}:{reader.line_num} is not valid CSV ({error}): is a double quote left open?"
        raise ConfigError(message) from error


def _sniff(text: str) -> str:
    """The delimiter that cuts the first rows into the most fields, the same number in each."""

    def fields(delimiter: str) -> int:
        try:
            counts = {len(row) for _, row in islice(_lines("", text, delimiter), SNIFFED)}
        except ConfigError:
            return 0
        return counts.pop() if len(counts) == 1 else 0

    found = max(DELIMITERS, key=fields)
    # Where no delimiter fits every row, the header's own is taken, so that the row that is wrong gets named.
    return found if fields(found) > 1 else max(DELIMITERS, key=text.split("\n", 1)[0].count)
