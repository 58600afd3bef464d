"""Which folders hold an adapter version, and what they look like from outside.

Three layouts are one: DIR/NAME/, DIR/NAME/VERSION/, and several folders whose manifests give one name.
Nothing here opens a file: a compare costs one `stat` for each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from router.registry.versions import looks_like_version

MANIFEST, CONFIG = "adapter.toml", "adapter_config.json"
COUNTING = (MANIFEST, CONFIG, "probes.jsonl", "chat_template.jinja")
REPORT = "report.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")  # also the refused ones: they explain a refusal
MOST_FILES = 1_000  # of one folder; an adapter has about ten

FileStamp = tuple[str, int, int, int, int]  # name, bytes, mtime ns, ctime ns, inode


@dataclass(frozen=True, slots=True)
class Stamp:
    """A folder from outside. Equal stamps: no file that counts was written or replaced.

    Logs and reports that a trainer keeps writing beside an adapter do not count.
    """

    files: tuple[FileStamp, ...] = ()
    refused: str = ""  # why the folder is not looked into

    @property
    def newest(self) -> float:
        """The last change of any file, unix seconds; 0 without files."""
        return max((f[3] for f in self.files), default=0) / 1e9


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter version may be. `name` and `version` are what the folders are called, as a default."""

    folder: Path
    name: str
    version: str = ""


def is_ignored(name: str) -> bool:
    """Hidden and temporary names: what editors, copiers and operators use for what is not finished."""
    return name.startswith(".") or name.endswith((".tmp", "~", ".part", ".partial", ".swp"))


def places(top: Path) -> list[Place]:
    """The adapter versions of one entry of an adapters folder.

    Folders inside it are versions when they are called like one or bring their own manifest, and `top` is
    no adapter itself (trainers leave checkpoint folders beside one).
    """
    inner: list[Place] = []
    for entry in _entries(top):
        if entry.name in (MANIFEST, CONFIG) or entry.name.endswith(".safetensors"):
            return [Place(top, top.name)]
        if entry.is_dir() and _is_version_folder(entry):
            inner.append(Place(Path(entry.path), top.name, entry.name))
    return sorted(inner, key=lambda p: p.version) or [Place(top, top.name)]


def _is_version_folder(entry: os.DirEntry[str]) -> bool:
    return looks_like_version(entry.name) or os.path.lexists(os.path.join(entry.path, MANIFEST))


def stamp(folder: Path, root: Path) -> Stamp:
    """What `folder`, somewhere below `root`, looks like now; one behind a symbolic link is not looked into.

    Raises FileNotFoundError when it is gone.
    """
    try:
        if any(os.path.islink(p) for p in (folder, folder.parent) if p != root):
            return Stamp(refused="is a symbolic link, and none is followed; copy the folder in")
        return Stamp(tuple(sorted(_stamps(folder))))
    except FileNotFoundError:
        raise
    except OSError as error:
        return Stamp(refused=f"cannot be read: {error.strerror}")


def report_stamp(folder: Path) -> Stamp:
    """What the report beside an adapter looks like; no files where there is none."""
    try:
        info = os.lstat(folder / REPORT)
    except OSError:
        return Stamp()
    return Stamp(((REPORT, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino),))


def _stamps(folder: Path) -> Iterator[FileStamp]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            yield from _file_stamp(entry, entry.name)
    if any(e.name == CONFIG for e in entries):
        return  # folders beside it are a trainer's checkpoints
    for inner in entries:  # PEFT puts an adapter that is not called "default" one level down
        if inner.is_dir(follow_symlinks=False):
            for entry in _entries(inner.path):
                yield from _file_stamp(entry, f"{inner.name}/{entry.name}")


def _file_stamp(entry: os.DirEntry[str], name: str) -> Iterator[FileStamp]:
    if entry.name not in COUNTING and not entry.name.endswith(WEIGHT_SUFFIXES):
        return
    try:
        info = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since it was listed: as if it had not been
        return
    yield name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [e for e in islice(found, MOST_FILES) if not is_ignored(e.name)]
