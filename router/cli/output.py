"""Tables, JSON, and numbers for people."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import unicodedata
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from router.types import AdapterRef

if TYPE_CHECKING:
    pass


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned as `ps` does; never wrapped or cut."""
    lines = [tuple(columns), *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(map(_cells, column)) for column in zip_longest(*lines, fillvalue="")]

    def aligned(line: Sequence[str]) -> str:
        padded = (cell + " " * (width - _cells(cell)) for cell, width in zip(line, widths, strict=False))
        return "  ".join(padded).rstrip()

    print("\n".join(map(aligned, lines)))


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """`key  value` lines, keys aligned."""
    width = max(len(key) for key, _ in pairs)
    for key, value in pairs:
        print(f"{key:<{width}}  {one_line(value)}".rstrip())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def jsonable(value: Any) -> Any:
    """Dataclasses as objects, adapters as resource names, bytes as numbers, infinite numbers as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, AdapterRef):
        return value.resource
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def clean(text: str) -> str:
    """Control characters out, so that text from elsewhere cannot drive the terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def one_line(text: str) -> str:
    """For a table cell."""
    return " ".join(clean(text).split())


def is_plain(stream: IO[str]) -> bool:
    """No redrawing and no block characters: not a terminal, a dumb one, or NO_COLOR is set."""
    return not stream.isatty() or os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))


def size(count: int) -> str:
    """Bytes in powers of 1000: 9.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as 0.4 ms, 120 ms, 1.5 s."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def ago(then: float | None, now: float | None = None) -> str:
    """How long ago a unix time was; empty for never."""
    if then is None:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - then)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def bar(value: float, width: int, plain: bool) -> str:
    """A bar for a value in [0, 1]."""
    return ("#" if plain else "█") * round(min(max(value, 0.0), 1.0) * width)
