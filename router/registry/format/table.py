"""Typed reading of one manifest table: every problem becomes a finding, nothing raises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.text import nearest, show

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
