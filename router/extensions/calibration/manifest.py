"""Examples added to an `adapter.toml` as text: comments, order and everything else stay as they were.

What comes out is read again and compared with what it should say, so a file whose shape is not understood is
refused and never spoilt.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.errors import ConfigError
from router.extensions.calibration.proposals import Addition

TABLE = "routing"
INDENT = "  "
_HEADER = re.compile(r"\[[ \t]*([A-Za-z0-9_-]+)[ \t]*\]")
_KEY = re.compile(r"([A-Za-z0-9_-]+)[ \t]*=[ \t]*")
_QUOTES = ('"""', "'''", '"', "'")


def with_examples(text: str, addition: Addition) -> str:
    """The manifest with these examples after those that it has. Raises ConfigError where that fails."""
    try:
        wanted = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}") from None
    added: Mapping[str, Sequence[str]] = {
        "examples": addition.examples,
        "negative_examples": addition.negative_examples,
    }
    for key, values in added.items():
        if values:
            text = _with(text, key, values)
            _expect(wanted, key, values)
    try:
        same = tomllib.loads(text) == wanted
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise ConfigError("cannot tell where its examples end: add them by hand, or write [routing] plainly")
    return text


def _expect(document: dict[str, Any], key: str, values: Sequence[str]) -> None:
    table = document.setdefault(TABLE, {})
    there = table.get(key, []) if isinstance(table, dict) else None
    if not isinstance(there, list):
        raise ConfigError(f"{key} under [{TABLE}] is no list: mend it first")
    table[key] = [*there, *values]


def _with(text: str, key: str, values: Sequence[str]) -> str:
    """The text with the values at the end of that list, or with a new one."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = "".join(f"{INDENT}{quoted(value)},{end}" for value in values)
    header = 0
    for part in _parts(text):
        if part.table == TABLE and part.key == key:
            return _appended(text, part, lines, end)
        if part.table == TABLE and not part.key:
            header = part.end
    whole = f"{key} = [{end}{lines}]{end}"
    if header:
        line_end = text.find("\n", header) + 1
        return text[:line_end] + whole + text[line_end:] if line_end else f"{text}{end}{whole}"
    blank = "" if not text or text.endswith("\n") else end
    return f"{text}{blank}{end}[{TABLE}]{end}{whole}"


@dataclass(frozen=True, slots=True)
class _ManifestPart:
    """A table's header (without `key`), or a key with its value, from `start` to `end`; `last` is where the
    last thing before a list's closing bracket ends."""

    table: str
    key: str
    start: int
    end: int
    last: int = 0


def _appended(text: str, part: _ManifestPart, lines: str, end: str) -> str:
    close = part.end - 1
    if text[part.last - 1] not in "[,":
        text, close = f"{text[: part.last]},{text[part.last :]}", close + 1
    begin = text.rfind("\n", 0, close) + 1
    if begin > part.start and not text[begin:close].strip():
        return text[:begin] + lines + text[begin:]
    return f"{text[:close].rstrip(' ')}{end}{lines}{text[close:]}"


def _parts(text: str) -> Iterator[_ManifestPart]:
    """Headers and plain keys in their order; what is written otherwise is passed over."""
    at, table = 0, ""
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif (header := _HEADER.match(text, at)) is not None:
            table = header[1]
            yield _ManifestPart(table, "", at, header.end())
            at = header.end()
        elif (key := _KEY.match(text, at)) is not None:
            end, last = _value_end(text, key.end())
            yield _ManifestPart(table, key[1], at, end, last)
            at = max(end, at + 1)
        else:
            at = _value_end(text, at)[0] + 1


def _value_end(text: str, at: int) -> tuple[int, int]:
    """Where the value ends, and where the last thing in it ends before its closing bracket."""
    depth, last, before = 0, at, at
    while at < len(text):
        letter = text[at]
        if letter == "#":
            at = _line_end(text, at)
            continue
        if letter == "\n" and depth == 0:
            break
        at = _string_end(text, at) if letter in "\"'" else at + 1
        if letter in " \t\r\n":
            continue
        depth += (letter in "[{") - (letter in "]}")
        before, last = last, at
        if depth == 0 and letter in "]}":
            return at, before
    return last, before


def _string_end(text: str, at: int) -> int:
    quote = next(quote for quote in _QUOTES if text.startswith(quote, at))
    at += len(quote)
    while at < len(text) and not text.startswith(quote, at):
        at += 2 if text[at] == "\\" and quote[0] == '"' else 1
    at += len(quote)
    while len(quote) == 3 and text[at : at + 1] == quote[0]:  # up to two quotes may stand before the end
        at += 1
    return at


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def quoted(text: str) -> str:
    """A TOML basic string of one line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
