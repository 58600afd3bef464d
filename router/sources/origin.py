"""`source.toml` beside an adapter: where it came from, and what exactly was taken. The server does not read
it, and it is no part of the digest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE_NAME = "source.toml"
MOST_BYTES = 64 << 10
HEAD_CHARS = 16_000
LICENSE = re.compile(r"license:\s*[\"']?([A-Za-z0-9][A-Za-z0-9.+_-]{0,63})[\"']?\s*")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter came from."""

    source: str
    digest: str  # of the adapter, hex; '' where nobody computed it
    pin: str  # the commit of a hub; of others a value that changes with a file
    subfolder: str = ""
    license: str = ""  # as the model card says
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 by name

    def write(self, folder: Path) -> None:
        """Put the record beside the adapter."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pairs = {"source": self.source, "subfolder": self.subfolder, "pin": self.pin}
        pairs |= {"digest": self.digest and f"sha256:{self.digest}", "license": self.license}
        lines = [f"{key} = {quoted(value)}" for key, value in pairs.items() if value]
        files = [f"{quoted(name)} = {quoted(value)}" for name, value in sorted(self.files.items())]
        text = "\n".join([*lines, f"added = {now}", "", "[sha256]", *files, ""])
        (folder / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """The record beside an adapter; None where there is none that can be read."""
        said = _said(folder)
        texts = {key: str(said.get(key, "")) for key in ("source", "subfolder", "pin", "digest")}
        texts["digest"] = texts["digest"].removeprefix("sha256:")
        sums = said.get("sha256")
        files = {str(name): str(value) for name, value in sums.items()} if isinstance(sums, dict) else {}
        return cls(**texts, files=files) if texts["source"] and texts["digest"] else None


def pin_in(folder: Path, source: str) -> str:
    """The pin in the record beside an adapter, if it came from this source; else ''."""
    said = _said(folder)
    return str(said.get("pin", "")) if said.get("source") == source else ""


def _said(folder: Path) -> dict[str, Any]:
    try:
        with (folder / FILE_NAME).open("rb") as file:
            return tomllib.loads(file.read(MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def quoted(text: str) -> str:
    """A TOML string; what is not printable is escaped."""
    escaped = "".join(
        c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" if c not in '"\\' else f"\\{c}"
        for c in text
    )
    return f'"{escaped}"'


def license_in(folder: Path) -> str:
    """The licence that the head of a model card (README.md) names; '' if there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:HEAD_CHARS]
    except OSError:
        return ""
    if not text.startswith("---\n"):
        return ""
    for line in text.split("\n---", 1)[0].splitlines():
        if found := LICENSE.fullmatch(line):
            return found[1]
    return ""
