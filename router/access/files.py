"""Files that are read again when they change, while what they said before goes on."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from router.errors import ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")
Look: TypeAlias = "tuple[int, int, int, int] | None"  # None: the file is not there


class Reread(Generic[T]):
    """A value made of files. Any thread may ask for it.

    Raises what `make` raises when it is built; later, ConfigError and OSError leave the old value in place,
    and `problem` says why until the files are good again.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], T]) -> None:
        self._paths, self._make, self._lock = tuple(paths), make, threading.Lock()
        self.problem = ""
        self._seen = self._looks()
        self._value = make()

    def value(self) -> T:
        """As the files are now, or were when they were last good; looks at them, a few microseconds."""
        with self._lock:
            looks = self._looks()
            if looks != self._seen:
                self._seen = looks
                self._again()
            return self._value

    def _again(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._make()
        except (ConfigError, OSError) as error:
            self.problem = error.message if isinstance(error, ConfigError) else str(error)
            log.error(
                "changed and not usable; what it said before stays in force",
                extra={"fields": {"file": names, "problem": self.problem}},
            )
        else:
            self.problem = ""
            log.info("read again", extra={"fields": {"file": names}})

    def _looks(self) -> tuple[Look, ...]:
        return tuple(map(look, self._paths))


def look(path: Path) -> Look:
    """What changes when somebody writes or replaces a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
