"""Files that are read again when they change. The last good content stays in force."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from router.errors import RouterError

log = logging.getLogger(__name__)
T = TypeVar("T")
Look: TypeAlias = "tuple[int, int, int, int] | None"  # None: the file is not there
MOST_BYTES = 16 << 20  # of a file that an operator writes
MOST_PROBLEM = 500  # characters
RETRY_SECONDS = 5.0  # between attempts at the same bad content: the cause may be elsewhere, as no descriptors
EMPTY_SECONDS = 0.3  # for which an emptied file is taken for one that is being written
COARSE_NS = (
    100_000_000  # a file system's times may stand still so long: a second write in it has the same stat
)


class Reread(Generic[T]):
    """A value made of files. Any thread may ask for it.

    The constructor raises what `make` raises. Later, any exception of `make` leaves the old value in force.
    It is logged once per change of the files, and `problem` has it until the files are good again. A file
    that has just been emptied is not read for EMPTY_SECONDS: many programs empty a file before they write it.
    """

    def __init__(
        self, paths: Sequence[Path], make: Callable[[], T], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths, self._make, self._lock, self._now = tuple(paths), make, threading.Lock(), now
        self.problem = ""
        self._retry_at = 0.0
        self._emptied_at: float | None = None
        self._seen = self._looks()
        self._unsure_until = _unsure_until(self._seen)
        self._value = make()

    def value(self) -> T:
        """The newest good value. Stats the files, a few microseconds, and reads them if they changed."""
        with self._lock:
            looks = self._looks()
            changed = looks != self._seen
            if changed and self._is_written(looks):
                return self._value
            if changed or self._is_due():
                self._seen, self._unsure_until = looks, _unsure_until(looks)
                self._read(changed)
            return self._value

    def _is_written(self, looks: Sequence[Look]) -> bool:
        """Whether a file that had content is empty, and has not been so for EMPTY_SECONDS."""
        pairs = zip(self._seen, looks, strict=True)
        if not any(now is not None and not now[1] and (was is None or was[1]) for was, now in pairs):
            self._emptied_at = None
            return False
        if self._emptied_at is None:
            self._emptied_at = self._now()
        return self._now() - self._emptied_at < EMPTY_SECONDS

    def _is_due(self) -> bool:
        if self._unsure_until and time.time_ns() > self._unsure_until:
            return True
        return bool(self.problem) and self._now() >= self._retry_at

    def _read(self, changed: bool) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            made = self._make()
        except Exception as error:
            problem = problem_of(error)
            if changed or problem != self.problem:
                log.error(
                    "changed and not usable; the content before stays in force",
                    extra={"fields": {"file": names, "problem": problem}},
                )
            self.problem, self._retry_at = problem, self._now() + RETRY_SECONDS
        else:
            if changed or self.problem or made != self._value:
                self._value, self.problem = made, ""
                log.info("read again", extra={"fields": {"file": names}})

    def _looks(self) -> tuple[Look, ...]:
        return tuple(map(look, self._paths))


def _unsure_until(looks: Sequence[Look]) -> int:
    """When files are to be read again that were written just before this look, in ns since 1970; 0: never."""
    newest = max((one[3] for one in looks if one is not None), default=0)
    return newest + COARSE_NS if abs(time.time_ns() - newest) <= COARSE_NS else 0


def look(path: Path) -> Look:
    """The stat fields that change when a file is written or replaced."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    size = found.st_size if stat.S_ISREG(found.st_mode) else -1  # pipes and devices have no size
    return found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns


def read_file(path: Path, most: int = MOST_BYTES, private: bool = False) -> bytes:
    """The bytes of a regular file. Does not wait for a pipe, and reads no more than `most` bytes.

    `private`: a file that every user of the machine may write is refused. Raises OSError; its strerror is the
    reason.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file", str(path))
        if private and found.st_mode & stat.S_IWOTH:
            raise OSError(0, "every user of this machine may write it; chmod o-w it", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"more than {most} bytes", str(path))
    return data


def problem_of(error: Exception) -> str:
    """What is wrong, in one line of at most 500 characters, for the log and for operators."""
    if isinstance(error, RouterError):
        text = error.message
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())[:MOST_PROBLEM]
