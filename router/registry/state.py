"""What the parts of the registry share: files that survive a restart, threads, and what is to be done."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from router.built_in import is_built_in_folder
from router.folders import state_folder

log = logging.getLogger(__name__)


def state_dir(dirs: Sequence[Path], base: Path | None = None) -> Path:
    """The folder for the state of a server over `dirs`, below the user's state folder.

    The folder of the built-in adapters does not count beside others: it makes no difference whether that is
    served, nor where the package is installed.
    """
    named = [d for d in dirs if not is_built_in_folder(d, "adapters")] or dirs
    real = "\n".join(os.path.realpath(d) for d in named)
    return (base or state_folder()) / "registry" / hashlib.sha256(os.fsencode(real)).hexdigest()[:16]


# -- files that are on the disk when a call returns


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path` and rename, so that a reader or a crash sees the old or the new file, whole.

    The new one is on the disk when this returns. Raises OSError; the old file is then there still, unless
    the disk failed after the rename. Blocks: not for the event loop.
    """
    _make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def append_durably(path: Path, line: str) -> None:
    """Add a line; it is on the disk when this returns. Raises OSError. Blocks: not for the event loop."""
    _make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """The folder and those above it, each entered in the one above on the disk too."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """What was entered in the folder is on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not sync folders
            raise
    finally:
        os.close(handle)


# -- what is found out once: digests that were proven, hashes of weights


MAX_ENTRIES = 20_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PersistentCache:
    """What was found out once, one line each: a key and perhaps a value. The newest MAX_ENTRIES are kept.

    `again` says what happens again where the file cannot be used. Blocks for small files: call it from one
    worker thread, always the same.
    """

    def __init__(self, file: Path, again: str) -> None:
        self._file, self._again = file, again
        self._values: dict[str, str] = {}
        self._writable = True

    def read(self) -> None:
        """Read the file; keeps the newest and shortens a file that is much longer."""
        try:
            lines = self._file.read_text("ascii").splitlines()
            self._values = dict(line.partition(" ")[::2] for line in lines[-MAX_ENTRIES:] if line)
            if len(lines) > 2 * MAX_ENTRIES:
                kept = (_line(key, value) for key, value in self._values.items())
                write_atomically(self._file, "".join(kept).encode())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s: %s cannot be used (%s)", self._again, self._file, error)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> str:
        """The sha256 in hex that was noted; '' where there is none, or where the line is damaged."""
        value = self._values.get(key, "")
        return value if _SHA256.fullmatch(value) else ""

    def note(self, key: str, value: str = "") -> None:
        """Remember it."""
        if self._values.get(key) == value:
            return
        self._values[key] = value
        while len(self._values) > MAX_ENTRIES:
            del self._values[next(iter(self._values))]
        if not self._writable:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="ascii") as file:
                file.write(_line(key, value))
        except OSError as error:
            self._writable = False
            log.warning("%s after a restart: cannot write %s (%s)", self._again, self._file, error)


def proven_in(folder: Path) -> PersistentCache:
    """Digests whose probes passed on this base."""
    return PersistentCache(folder / "proven", "probes run again")


def hashes_in(folder: Path) -> PersistentCache:
    """The sha256 of weights files that look as they did when they were read.

    It decides about routing alone: whatever is loaded is hashed again.
    """
    return PersistentCache(folder / "weights", "weights are hashed again")


def _line(key: str, value: str) -> str:
    return f"{key} {value}\n" if value else f"{key}\n"


# -- threads for files

LOAD_THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """The event loop never waits for a disk, and loads that requests wait for never queue behind looks."""

    def __init__(self) -> None:
        self._loads = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="adapters-load")
        self._ordered = ThreadPoolExecutor(1, thread_name_prefix="adapters-look")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` beside other work."""
        return await self._submit(self._loads, work, *args, **kwargs)

    async def in_order(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` after all earlier calls of this method: one at a time."""
        return await self._submit(self._ordered, work, *args, **kwargs)

    @staticmethod
    async def _submit(pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))

    async def close(self) -> None:
        """Finish what runs, drop what waits."""
        for pool in (self._loads, self._ordered):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._loads.shutdown)
        await asyncio.to_thread(self._ordered.shutdown)


# -- what the registry's task has to do


class PendingWork:
    """Adapter names with a change, changed folders, and choices of other edges, until the registry's task
    takes them. Every part that learns of a change adds it. On the event loop."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.dirty: set[Path] = set()
        self.chosen: dict[str, None] = {}
        self.wake = asyncio.Event()

    def plan(self, name: str) -> None:
        """Something of this name changed: perhaps a load is due."""
        self.names[name] = None
        self.wake.set()

    def look(self, paths: Collection[Path]) -> None:
        """These changed on disk."""
        self.dirty.update(paths)
        self.wake.set()

    def agree(self, names: Iterable[str]) -> None:
        """Other edges chose other default versions of these."""
        self.chosen.update(dict.fromkeys(names))
        self.wake.set()
