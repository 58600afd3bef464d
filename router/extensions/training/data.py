"""Rows of a data file, and the checks that keep the splits apart."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.extensions.training.recipe import Data

Schema = tuple[tuple[str, tuple[str, ...]], ...]  # tables and their columns


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One example and where it stands."""

    prompt: str
    response: str
    place: str  # FILE:LINE
    bare: str = ""  # the input without its instruction, where the file has it as `x`
    schema: Schema = ()  # of the database that the row asks about, where the file has it as `schema`


@dataclass(frozen=True, slots=True)
class Splits:
    """The three splits, checked."""

    train: tuple[TrainingRow, ...]
    valid: tuple[TrainingRow, ...]
    test: tuple[TrainingRow, ...]


def load_splits(data: Data) -> Splits:
    """Read the three files. Raises ConfigError for a bad row, an empty split or a leaked row."""
    splits = {name: tuple(read_rows(getattr(data, name))) for name in ("train", "valid", "test")}
    for name, rows in splits.items():
        if not rows:
            raise ConfigError(f"data.{name}: {getattr(data, name)} holds no row")
    refuse_leaks(splits)
    kept = max(1, round(data.fraction * len(splits["train"])))
    return Splits(splits["train"][:kept], splits["valid"], splits["test"])


def read_rows(path: Path) -> Iterator[TrainingRow]:
    """Rows of a JSON-lines file, gzip by its suffix; unknown fields are left alone."""
    for place, value in read_json_lines(path):
        prompt, response = text_of(value, "prompt", place), text_of(value, "response", place)
        yield TrainingRow(
            prompt, response, place, str(value.get("x", "")), _schema(value.get("schema", {}), place)
        )


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """FILE:LINE and value of every line that is not blank. Raises ConfigError naming file and line."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path.name}:{number}"
            try:
                yield place, json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{place} is not JSON: {error.msg}") from error


def text_of(value: Any, name: str, place: str) -> str:
    """The field `name`, which must hold text. Raises ConfigError naming the place."""
    text = value.get(name) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place} has no text in {name!r}")
    return text


def _schema(value: Any, place: str) -> Schema:
    tables: list[Any] = list(value.values()) if isinstance(value, dict) else [None]
    for columns in tables:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise ConfigError(f"{place}: 'schema' must be an object of tables with lists of column names")
    return tuple((table, tuple(columns)) for table, columns in value.items())


def refuse_leaks(splits: Mapping[str, Sequence[TrainingRow]]) -> None:
    """Refuse a validation or test row whose prompt stands in an earlier split too.

    Prompts are compared without case and with white space folded.
    """
    seen: dict[str, str] = {}
    for rows in splits.values():
        for row in rows:
            if other := seen.get(prompt_key(row.prompt)):
                raise ConfigError(
                    f"{row.place} also stands in {other}: {row.prompt[:80]!r}; remove one of them"
                )
        for row in rows:
            seen.setdefault(prompt_key(row.prompt), row.place)


def prompt_key(prompt: str) -> str:
    """What two prompts share that count as the same: no case, white space folded."""
    return " ".join(prompt.casefold().split())
