"""A folder aside, inside the adapters folder, for an adapter that comes: no server looks into it.

A whole folder is moved out of it by one rename; the rest is removed. `source.toml` is the record of where the
adapter came from: the server does not read it, and it is no part of the digest.
"""

from __future__ import annotations

import ctypes
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

PREFIX = ".add-"
FILES, TREE, OLD = "being-added", "tree", "old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
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

        Readers see what was there or all of this. Raises AlreadyExists if somebody else was faster.
        """
        _sync(self.files)
        if not replace:
            self._move_in(target)
        elif not _exchange(self.files, target):
            self._replace(target)

    def _replace(self, target: Path) -> None:
        """By two renames, where the system cannot exchange folders."""
        old = self.folder / OLD
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            self._move_in(target)
        except BaseException:
            old.rename(target)
            raise

    def _move_in(self, target: Path) -> None:
        parent = target.parent
        try:
            if not os.path.lexists(parent):
                self._move_in_new(target)
            else:
                self.files.rename(target)
            _sync_folder(parent)
            _sync_folder(parent.parent)
        except OSError as error:
            if os.path.lexists(target):
                raise AlreadyExists(f"{target} is there already") from error
            raise

    def _move_in_new(self, target: Path) -> None:
        """A name that is new comes in with its version by one rename."""
        tree = self.folder / TREE
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        inside = self.files.rename(tree / target.name)
        try:
            tree.rename(target.parent)
        except OSError:
            if not target.parent.is_dir():
                inside.rename(self.files)
                raise
            inside.rename(target)  # somebody else added another version just now


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


def _exchange(one: Path, other: Path) -> bool:
    """Each takes the other's place, in one step; False where that cannot be had."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    done = bool(call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)
    if done:
        _sync_folder(other.parent)
    return done


def _sync(folder: Path) -> None:
    """What is seen after a rename is whole after a power cut, too."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
