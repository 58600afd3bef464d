"""One folder of a store, brought here: chosen, fetched or from the cache, looked at again, put in place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from router.errors import AdapterRejected, DataLoss, ResourceExhausted
from router.registry.format.text import some
from router.sources.choice import NEEDED, TAKEN
from router.sources.mirror.cache import Cache
from router.sources.mirror.copies import Copies
from router.sources.mirror.store import Folders, Remote, RemoteFolder
from router.sources.origin import Origin
from router.sources.source import RemoteFile
from router.sources.transfer import FULL, Pause, Progress, Transfer


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
        self.cache.note(
            known
        )  # not earlier: a mark is of these bytes only if it was the file's own to the end
        Origin(self.store.reference, "", folder.pin, files=sums).write(target)

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
