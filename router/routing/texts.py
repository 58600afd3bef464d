"""Small text helpers that classifiers share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from router.types import AdapterProfile

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?[+#]*")


def ends(text: str, head: int, tail: int) -> str:
    """The first `head` and last `tail` characters: an instruction stands before or after what it is about."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]} … {text[-tail:]}"


def words(text: str) -> list[str]:
    """Words of `text`, case folded; `C++`, `c#` and `don't` stay whole."""
    return WORD.findall(text.casefold().replace("’", "'"))


def digest_of(path: Path) -> str:
    """Of a file's bytes: for the fingerprint of a classifier that learns from it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_background(path: Path, adapters: Sequence[AdapterProfile]) -> list[str]:
    """Requests that no adapter of these should get, from a file of lines under `# NAME [ALIAS...]` headings.

    A section that is named like the domain or task of an adapter is left out: it is no background then.
    """
    taken = {axis for a in adapters for axis in (a.name, a.domain, a.task)}
    lines: list[str] = []
    wanted = True
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            wanted = taken.isdisjoint(line[2:].split())
        elif line.strip() and wanted:
            lines.append(line.strip())
    return lines
