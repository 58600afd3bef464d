"""Somebody's file as rows to learn from: read, columns chosen, cleaned, and split by a hash.

CSV, TSV, JSON lines and JSON are read; all errors name the file and the line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.training.data import prompt_key

DELIMITERS = (",", ";", "\t", "|")
SNIFFED = 50  # lines that must agree on a delimiter
LONGEST_FIELD = 1 << 20  # characters; beyond it a quote was left open
# Pairs that data sets on the Hugging Face hub commonly use.
USUAL_PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
    ("source", "target"),
    ("text", "label"),
    ("text", "summary"),
    ("document", "summary"),
)
FEWEST_ROWS = 50  # fewer leave a test split that proves nothing
SPLIT_SHARE = 0.15  # of the rows, for validation and for test each
SPLIT_ROWS = 300  # at most, in each of them: more cost time and say little more


def read_pairs(path: Path, said: Columns, say: Callable[[str], None]) -> tuple[Sequence[Pair], Columns, int]:
    """The usable rows of a file, the columns they come from, and how many rows were found; says all that.

    Raises ConfigError that names the file and the line, or the columns there are.
    """
    table = read_table(path)
    columns = choose_columns(table.columns, said.prompt, said.response, said.group)
    cleaned = clean_rows(table.records, columns)
    found = len(table.records)
    say(f"{path.name}: {found} rows; {columns.prompt!r} asks, {columns.response!r} answers")
    if left_out := cleaned.left_out():
        say(f"left out: {', '.join(left_out)}")
    return cleaned.pairs, columns, found


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
        return _delimited(path, _decoded(path), "\t" if suffix in (".tsv", ".tab") else "")
    if suffix in (".jsonl", ".ndjson", ".json"):
        read = _json_list if suffix == ".json" else _json_lines
        records = tuple(Record(place, values) for place, values in read(path.name, _decoded(path)))
        return Table(tuple(dict.fromkeys(name for record in records for name in record.values)), records)
    raise ConfigError(f"{path}: cannot tell what it is by {suffix!r}; known: .csv, .tsv, .jsonl, .json")


def _decoded(path: Path) -> str:
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


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE:LINE and fields of every object; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _fields(_parse(line, place), place)


def _json_list(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE[PLACE] and fields of every object of a list."""
    value = _parse(text, name)
    if not isinstance(value, list):
        raise ConfigError(f"{name} holds no list of objects: [{{...}}, {{...}}]")
    for number, item in enumerate(value):
        place = f"{name}[{number}]"
        yield place, _fields(item, place)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error


def _fields(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is no object: {{...}}")
    return {name: _as_text(item, name, place) for name, item in value.items()}


def _as_text(value: Any, name: str, place: str) -> str:
    """Texts and numbers as they are, null as nothing; lists and objects are kept as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {name!r} holds half a character (a lone surrogate)") from error
    return text


# -- which column asks, which one answers


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; `group` is empty where every row stands for itself."""

    prompt: str
    response: str
    group: str = ""


def choose_columns(names: Sequence[str], prompt: str = "", response: str = "", group: str = "") -> Columns:
    """What is said wins; else a usual pair of names, else the two columns there are.

    Raises ConfigError with all columns when they cannot be guessed or do not exist.
    """
    for option, name in (("prompt", prompt), ("response", response), ("group", group)):
        if name and name not in names:
            raise ConfigError(f"--{option}-column {name!r} is not in the data: {_listed(names)}")
    left = [name for name in names if name not in (prompt, response, group)]
    if not prompt and not response:
        prompt, response = _pair(left)
    elif len(left) == 1:
        prompt, response = prompt or left[0], response or left[0]
    if not prompt or not response:
        raise ConfigError(
            "which column is the question and which the answer? say --prompt-column NAME and "
            f"--response-column NAME; {_listed(names)}"
        )
    if len({prompt, response, group}) < 3:
        raise ConfigError("prompt, response and group must be different columns")
    return Columns(prompt, response, group)


def _pair(names: Sequence[str]) -> tuple[str, str]:
    lowered = {name.lower(): name for name in names}
    for prompt, response in USUAL_PAIRS:
        if prompt in lowered and response in lowered:
            return lowered[prompt], lowered[response]
    return (names[0], names[1]) if len(names) == 2 else ("", "")


def _listed(names: Sequence[str]) -> str:
    return "the columns are " + ", ".join(map(repr, names)) + " (of a CSV file, the first line names them)"


# -- rows fit to learn from


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its answer; pairs of one `group` go to one split."""

    prompt: str
    response: str
    group: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left, and how many rows were left out for what."""

    pairs: tuple[Pair, ...]
    empty: int
    repeated: int
    contradicting: int  # the same prompt with another answer: the first one counts

    def left_out(self) -> list[str]:
        """In words, for a person."""
        counts = {
            "without prompt or answer": self.empty,
            "repeated": self.repeated,
            "repeated with another answer": self.contradicting,
        }
        return [f"{count} {words}" for words, count in counts.items() if count]


def clean_rows(records: Iterable[Record], columns: Columns) -> Cleaned:
    """Rows without text and those that repeat a prompt are left out, and counted.

    White space at the ends goes; prompts are compared without case, white space folded.
    """
    kept: dict[str, Pair] = {}
    empty = repeated = contradicting = 0
    for record in records:
        prompt, response = (
            record.values.get(name, "").strip() for name in (columns.prompt, columns.response)
        )
        key = prompt_key(prompt)
        if not prompt or not response:
            empty += 1
        elif key not in kept:
            group = prompt_key(record.values.get(columns.group, "")) if columns.group else ""
            kept[key] = Pair(prompt, response, group or key)
        elif kept[key].response == response:
            repeated += 1
        else:
            contradicting += 1
    return Cleaned(tuple(kept.values()), empty, repeated, contradicting)


def require_enough(usable: int, found: int, name: str) -> None:
    """Raises ConfigError where there are too few rows to learn from and to test with."""
    if usable < FEWEST_ROWS:
        of = f" of {found}" if found != usable else ""
        raise ConfigError(
            f"{name} has {usable} usable rows{of}; {FEWEST_ROWS} are needed at least, and some hundreds are "
            "better"
        )


# -- training, validation and test rows


Split = dict[str, list[Pair]]  # rows of train, valid and test


def split_rows(pairs: Sequence[Pair]) -> Split:
    """`train`, `valid` and `test`; pairs of one group stay together, in the order they came.

    By a hash, so that the same row always lands on the same side. Growing data keeps test rows out of
    training: the shares of validation and test rows shrink from the outer ends of the hash's range, so that a
    row may move from them to the training rows, never the other way.

    Raises ConfigError where a split stays empty: too few groups.
    """
    share = min(SPLIT_SHARE, SPLIT_ROWS / max(1, len(pairs)))
    made: Split = {"train": [], "valid": [], "test": []}
    for pair in pairs:
        place = _place(pair.group)
        made["test" if place < share else "valid" if place >= 1 - share else "train"].append(pair)
    if empty := [name for name, rows in made.items() if not rows]:
        groups = len({pair.group for pair in pairs})
        raise ConfigError(
            f"the {groups} groups of rows are too few to be split: none is left for {' and '.join(empty)}; "
            "choose another --group-column, or none"
        )
    return made


def _place(group: str) -> float:
    """A number in [0, 1), the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"split {group}".encode()).digest()[:6]) / (1 << 48)
