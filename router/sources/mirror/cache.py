"""Files by the sha256 of their bytes, so that the same bytes are fetched once, under however many names.
Several mirrors and several servers may share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from router.errors import ConfigError
from router.registry.persistent_cache import PersistentCache
from router.sources.source import HASH_BYTES

MOST_MARKS = 200_000  # two for each file
LEFT_SECONDS = 86_400.0  # what a process that was killed left half done is taken away after so long


class Cache:
    """Blocks; may be used by several threads. `most_bytes`: what was not used for longest goes above that.

    Raises ConfigError for a folder into which others may write.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = private_folder(folder) / "sha256", most_bytes
        self._lock_file = folder / "lock"
        self._marks = PersistentCache(folder / "marks", "files are fetched again", MOST_MARKS)
        self._lock = threading.Lock()
        self._grew = True
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._marks.read()

    def known(self, mark: str) -> str:
        """The sha256 of the file that had this mark; '' if none is known to."""
        with self._lock:
            return self._marks.get(_key(mark)) or ""

    def note(self, found: Mapping[str, str]) -> None:
        """Remember sha256 by mark."""
        with self._lock:
            self._marks.note({_key(mark): sha for mark, sha in found.items()})

    def take(self, sha: str, target: Path) -> bool:
        """Make `target` a copy; False if it is not here. What is here and damaged is thrown away."""
        blob = self._blob(sha)
        try:
            if _copy(blob, target) == sha:
                os.utime(blob)
                return True
            blob.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # never here, or it went just now
        target.unlink(missing_ok=True)
        return False

    def keep(self, path: Path, sha: str) -> None:
        """Have a copy of this file, unless it alone is more than may be kept."""
        blob = self._blob(sha)
        if blob.exists() or path.stat().st_size > self._most:
            return
        blob.parent.mkdir(mode=0o700, exist_ok=True)
        half = blob.with_name(f".{sha}-{os.getpid()}-{threading.get_ident()}")
        try:
            _copy(path, half)
            os.replace(half, blob)
        finally:
            half.unlink(missing_ok=True)
        self._grew = True

    def trim(self) -> int:
        """Bring it to its limit if it has grown; gives how many files went."""
        if not self._grew:
            return 0
        self._grew = False
        with self._lock_file.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return self._trim()

    def _trim(self) -> int:
        found, gone = [], 0
        for path in self._folder.glob("*/*"):
            try:
                info = path.stat()
            except FileNotFoundError:
                continue
            if not path.name.startswith("."):
                found.append((info.st_mtime, info.st_size, path))
            elif time.time() - info.st_mtime > LEFT_SECONDS:
                path.unlink(missing_ok=True)
        size = sum(one for _, one, _ in found)
        for _, one, path in sorted(found):
            if size <= self._most:
                break
            path.unlink(missing_ok=True)
            size, gone = size - one, gone + 1
        return gone

    def _blob(self, sha: str) -> Path:
        return self._folder / sha[:2] / sha


def private_folder(path: Path) -> Path:
    """A folder whose contents are served, or copied into what is served: made for this user alone if it is
    not there. Raises ConfigError for one into which others may write.

    A group may have been let in by who mounts it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{path} is a link: set mirror_dir to a folder of this user's own")
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
        raise ConfigError(f"others may write into {path}: set mirror_dir to a folder of this user's own")
    return path


def _key(mark: str) -> str:
    return hashlib.sha256(mark.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _copy(path: Path, target: Path) -> str:
    """Copy a file; gives its sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as source, target.open("wb") as out:
        while block := source.read(HASH_BYTES):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()
