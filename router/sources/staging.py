"""A folder aside, inside the adapters folder, for an adapter that comes: no server looks into it.

A whole folder is moved out of it by one rename; the rest is removed. `source.toml` is the record of where the
adapter came from: the server does not read it, and it is no part of the digest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.errors import AlreadyExists
from router.registry.state import sync_folder

PREFIX = ".add-"
FILES, OLD = "being-added", "old"
KEPT_SECONDS = 7 * 86_400.0  # of what a killed process left


@dataclass(frozen=True, slots=True)
class StagingArea:
    """The place of one adapter that comes."""

    folder: Path

    @property
    def files(self) -> Path:
        """Where the files come in."""
        return self.folder / FILES

    def publish(self, target: Path, *, replace: bool = False) -> None:
        """Make the files the folder `target`; with `replace` in place of the one that is there.

        Readers see all of this, what was there, or for a moment nothing. Raises AlreadyExists if somebody
        else was faster.
        """
        for path in self.files.iterdir():  # what is seen after a rename is whole after a power cut, too
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.files)
        target.parent.mkdir(exist_ok=True)
        try:
            if replace:
                target.rename(self.folder / OLD)
            self.files.rename(target)
        except OSError as error:
            if replace and not os.path.lexists(target):
                (self.folder / OLD).rename(target)
            elif os.path.lexists(target):
                raise AlreadyExists(f"{target} is there already") from error
            raise
        sync_folder(target.parent)
        sync_folder(target.parent.parent)


@contextmanager
def staged(adapters: Path) -> Iterator[StagingArea]:
    """A place of one's own, which is removed at the end."""
    made = not adapters.exists()
    adapters.mkdir(parents=True, exist_ok=True)
    try:
        _forget_old(adapters)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=adapters))
        try:
            (folder / FILES).mkdir()
            yield StagingArea(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if made and not any(adapters.iterdir()):
            adapters.rmdir()  # an empty one would be served instead of the adapters of the package


def _forget_old(adapters: Path) -> None:
    """Remove what killed processes left."""
    for folder in adapters.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


# -- source.toml


FILE_NAME = "source.toml"
MOST_BYTES = 64 << 10
HEAD_CHARS = 16_000
LICENSE = re.compile(r"license:\s*[\"']?([A-Za-z0-9][A-Za-z0-9.+_-]{0,63})[\"']?\s*")


@dataclass(frozen=True, slots=True)
class SourceRecord:
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
    def read(cls, folder: Path) -> SourceRecord | None:
        """The record beside an adapter; None where there is none that can be read."""
        table = _table(folder)
        texts = {key: str(table.get(key, "")) for key in ("source", "subfolder", "pin", "digest")}
        texts["digest"] = texts["digest"].removeprefix("sha256:")
        sums = table.get("sha256")
        files = {str(name): str(value) for name, value in sums.items()} if isinstance(sums, dict) else {}
        return cls(**texts, files=files) if texts["source"] and texts["digest"] else None


def _table(folder: Path) -> dict[str, Any]:
    try:
        with (folder / FILE_NAME).open("rb") as file:
            return tomllib.loads(file.read(MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


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
