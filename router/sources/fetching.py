"""One folder of a store, brought here: chosen, fetched or from the cache, looked at again, put in place."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from router.errors import AdapterRejected, ConfigError, DataLoss, ResourceExhausted
from router.registry.format.untrusted import some
from router.registry.state import PersistentCache
from router.sources.source import HASH_BYTES, RemoteFile
from router.sources.staging import FILE_NAME, FILES, SourceRecord, StagingArea, pin_in
from router.sources.store import Folders, Remote, RemoteFolder
from router.sources.transfer import FULL, NEEDED, TAKEN, Pause, Progress, Transfer

MOST_MARKS = 200_000  # two for each file
LEFT_SECONDS = 86_400.0  # what a process that was killed left half done is taken away after so long


class Cache:
    """Files by the sha256 of their bytes, so that the same bytes are fetched once, under however many names.

    Blocks; may be used by several threads, mirrors and servers. `most_bytes`: what was not used for longest
    goes above that.

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


# -- the folder that servers watch: each adapter in it is whole


ADAPTERS = "adapters"


class Copies:
    """`folder`/adapters, and a place beside it for what is not whole. What the store does not have is
    removed.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.root, self._aside, self._source = folder / ADAPTERS, folder / "staging", source

    def pins(self) -> dict[str, str]:
        """What is here, by place, with the pin that it was brought with; '' for what was not brought.

        What was left half done goes. For a caller that is alone here.
        """
        shutil.rmtree(self._aside, ignore_errors=True)
        for folder in (self.root, self._aside):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {place: pin_in(self.root / place, self._source) for place in self._places()}

    def _places(self) -> Iterator[str]:
        for top in _folders(self.root):
            inner = [] if (self.root / top / FILE_NAME).exists() else list(_folders(self.root / top))
            yield from (f"{top}/{name}" for name in inner)
            if not inner:
                yield top

    def put(self, place: str, fill: Callable[[Path], None]) -> None:
        """Have `fill` write a folder, and put it there, in one step, in the stead of what was there."""
        staging = StagingArea(self._aside / uuid4().hex)
        staging.files.mkdir(parents=True)
        try:
            fill(staging.files)
            target = self.root / place
            staging.publish(target, replace=os.path.lexists(target))
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)

    def remove(self, place: str) -> None:
        """Take it out in one step."""
        target = self.root / place
        aside = self._aside / uuid4().hex
        aside.mkdir(parents=True)
        try:
            target.rename(aside / FILES)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)
        if target.parent != self.root and not any(target.parent.iterdir()):
            with suppress(OSError):  # another version came just now
                target.parent.rmdir()


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


# -- one folder of the store


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Brings folders; from several threads. `aside`: where files come in. `most_bytes`: of one adapter."""

    store: Folders
    cache: Cache
    copies: Copies
    aside: Path
    most_bytes: int
    progress: Progress
    pause: Pause

    def bring(self, folder: RemoteFolder) -> None:
        """Have it here as it is there. What came of files stays for the next attempt.

        Raises AdapterRejected if it is not to be had, DataLoss if it changed meanwhile, ResourceExhausted on
        a full disk, Unavailable.
        """
        files = list(taken(folder, self.most_bytes))
        self._check_room(files)
        try:
            self.copies.put(folder.place, lambda target: self._fill(folder, files, target))
        except ResourceExhausted:
            raise _full(self.aside) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _full(self.aside) from None

    def _check_room(self, files: list[Remote]) -> None:
        self.aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        if 2 * sum(file.size for file in files) > _free(self.aside):
            raise _full(self.aside)

    def _fill(self, folder: RemoteFolder, files: list[Remote], target: Path) -> None:
        sums, known = {}, dict[str, str]()
        for file in files:
            marks = self._marks(folder.place, file)
            sums[file.name] = sha = self._cached(file, marks, target) or self._fetched(folder, file, marks)
            known.update(dict.fromkeys(marks, sha))
        came = {name: path for name, path in self._coming(folder, files) if path.exists()}
        if self.store.folder(folder.place).pin != folder.pin:
            for path in came.values():
                shutil.rmtree(path.parent, ignore_errors=True)
            raise DataLoss(f"{self.store.reference}{folder.place}/ changed while it was read")
        for name, path in came.items():
            self.cache.keep(path, sums[name])
            os.replace(path, target / name)
            shutil.rmtree(path.parent, ignore_errors=True)
        # Not earlier: a mark is of these bytes only if it was the file's own to the end.
        self.cache.note(known)
        SourceRecord(self.store.reference, "", folder.pin, files=sums).write(target)

    def _marks(self, place: str, file: Remote) -> list[str]:
        """By what the cache may know it: this very file, or any with these bytes."""
        own = f"{self.store.reference} {place}/{file.name} {file.mark}"
        return [own, f"{self.store.reference} {file.content}"] if file.content else [own]

    def _cached(self, file: Remote, marks: list[str], target: Path) -> str:
        for mark in marks:
            if (sha := self.cache.known(mark)) and self.cache.take(sha, target / file.name):
                self.progress(file.name, file.size, file.size)
                return sha
        return ""

    def _fetched(self, folder: RemoteFolder, file: Remote, marks: list[str]) -> str:
        coming = self._aside_of(marks[0])
        coming.mkdir(exist_ok=True)
        reading = _Reading(self.store, folder.place)
        return Transfer(reading, coming, self.progress, self.pause).fetch(RemoteFile(file.name, file.size))

    def _coming(self, folder: RemoteFolder, files: list[Remote]) -> Iterator[tuple[str, Path]]:
        for file in files:
            yield file.name, self._aside_of(self._marks(folder.place, file)[0]) / file.name

    def _aside_of(self, mark: str) -> Path:
        return self.aside / sha256(mark.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Reading:
    store: Folders
    place: str

    def read(self, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        return self.store.read(self.place, file, start)


def taken(folder: RemoteFolder, most: int) -> Iterator[Remote]:
    """The files that an adapter may have, in the order in which they are fetched. What is missing is for the
    registry to say. Raises AdapterRejected for links and for what is too large.
    """
    links = [file.name for file in folder.files.values() if file.link and file.name in NEEDED]
    if links:
        raise AdapterRejected(f"{some(links)}: a link, and none is followed")
    size = 0
    for name, bound in TAKEN.items():
        file = folder.files.get(name)
        if file is None or file.link:
            continue
        if file.size > bound and name in NEEDED:
            raise AdapterRejected(f"{name} has {file.size} bytes, at most {bound} are allowed")
        if file.size <= bound:
            size += file.size
            yield file
    if size > most:
        raise AdapterRejected(f"it has {size} bytes, and host_memory_mb has room for {most}")


def _full(folder: Path) -> ResourceExhausted:
    text = f"{folder}: {os.strerror(errno.ENOSPC)} ({_free(folder)} bytes are free): make room"
    return ResourceExhausted(text)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
