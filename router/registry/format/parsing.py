"""Typed reading of one manifest table: every problem becomes a finding, nothing raises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from router.registry.format import limits
from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.text import nearest, show

# JSON as RFC 8259 has it: UTF-8, no duplicate names, no NaN, finite numbers, bounded depth.


class JsonError(ValueError):
    """The text is not strict JSON; the message says why and is fit for a user."""


def loads(data: bytes) -> Any:
    """Parse `data`. Raises JsonError and nothing else."""
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    if parts > limits.JSON_PARTS:
        raise JsonError(f"has {parts} parts, at most {limits.JSON_PARTS} are allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except JsonError:
        raise
    except ValueError:  # int() of more digits than Python converts
        raise JsonError("a number has too many digits") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"{show(twice)} appears twice")
    return result


def _constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{show(text)} is out of range")
    return value


# A look at TOML text before the parser sees it.
#
# tomllib takes time quadratic in the number of parts of a dotted key, recurses into nested arrays, and reads
# escapes one by one: a file of 200 KiB keeps it busy for minutes. A manifest needs little of any of them.


DOTS = 8
DEPTH = 16
ESCAPES = 20_000

# Comments and the four kinds of strings; an unclosed one runs to the end of its line or of the file.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*",
    re.DOTALL,
)
_STRUCTURE = re.compile(r"[\[{]|[\]}]")
_BORDER = re.compile(r"[,=\[\]{}\n]")


def too_complex(text: str) -> str:
    """Why `text` is not worth parsing, or an empty string."""
    if text.count("\\") > ESCAPES:
        return f"has more than {ESCAPES} backslashes"
    bare = _OPAQUE.sub("", text)
    if any(piece.count(".") > DOTS for piece in _BORDER.split(bare)):
        return f"a key has more than {DOTS} dots"
    depth = 0
    for mark in _STRUCTURE.findall(bare):
        depth += 1 if mark in "[{" else -1
        if depth > DEPTH:
            return f"brackets are nested more than {DEPTH} deep"
    return ""


MANIFEST = "adapter.toml"


class Table:
    """A `[name]` table of the manifest."""

    def __init__(self, name: str, values: Mapping[str, Any], known: Collection[str], found: Findings) -> None:
        self.name, self.values, self.found = name, values, found
        for key in values:
            if key not in known:
                hint = nearest(key, known) or f"; known: {', '.join(known)}"
                found.refuse(Code.MANIFEST_UNKNOWN, f"unknown key {show(key)}{hint}", self._where(""))

    def _where(self, key: str) -> str:
        return f"{MANIFEST} [{self.name}] {key}".rstrip()

    def bad(self, key: str, message: str) -> None:
        """Refuse the value of `key`."""
        self.found.refuse(Code.MANIFEST_VALUE, message, self._where(key))

    def text(self, key: str, most: int, check: Callable[[str], str] | None = None) -> str:
        """A string of at most `most` characters; `check` says what else is wrong with it, if anything."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            self.bad(key, f"must be a string, is {show(value)}")
            return ""
        problem = f"has {len(value)} characters, at most {most} are allowed" if len(value) > most else ""
        if not problem and key in self.values and check is not None:
            problem = check(value)
        if problem:
            self.bad(key, problem)
            return ""
        return value

    def texts(self, key: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` strings of 1 to `longest` characters, none of them blank."""
        value = self.strings(key, most)
        for index, text in enumerate(value):
            if not text.strip() or len(text) > longest:
                self.bad(key, f"entry {index} must have 1 to {longest} characters, has {len(text)}")
                return ()
        return value

    def strings(self, key: str, most: int) -> tuple[str, ...]:
        """A list of at most `most` strings."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.bad(key, f"must be a list of strings, is {show(value)}")
            return ()
        if len(value) > most:
            self.bad(key, f"has {len(value)} entries, at most {most} are allowed")
            return ()
        return tuple(value)


def one_line(value: str) -> str:
    """A check for `Table.text`: printable, no line breaks."""
    return "" if value.isprintable() else "must be one line of printable characters"
