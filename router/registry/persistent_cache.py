"""What is found out once and remembered across restarts: digests that were proven, hashes of weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from router.registry.state import write_atomically

log = logging.getLogger(__name__)

MAX_ENTRIES = 20_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PersistentCache:
    """What was found out once, one line each: a key and perhaps a value. The newest `most` are kept (0:
    MAX_ENTRIES).

    `again` says what happens again where the file cannot be used.
    """

    def __init__(self, file: Path, again: str, most: int = 0) -> None:
        self._file, self._again, self._most = file, again, most or MAX_ENTRIES
        self._values: dict[str, str] = {}
        self._writable = True

    def read(self) -> None:
        """Read the file; keeps the newest and shortens a file that is much longer."""
        try:
            lines = self._file.read_text("ascii").splitlines()
            self._values = dict(line.partition(" ")[::2] for line in lines[-self._most :] if line)
            if len(lines) > 2 * self._most:
                kept = (_line(key, value) for key, value in self._values.items())
                write_atomically(self._file, "".join(kept).encode())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s: %s cannot be used (%s)", self._again, self._file, error)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> str | None:
        """What was noted."""
        return self._values.get(key)

    def note(self, values: Mapping[str, str]) -> None:
        """Remember them. Blocks for one small append: call it from one worker thread, always the same."""
        new = {key: value for key, value in values.items() if self._values.get(key) != value}
        self._values.update(new)
        for key in list(islice(self._values, max(len(self._values) - self._most, 0))):
            del self._values[key]
        if not new or not self._writable:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="ascii") as file:
                file.write("".join(_line(key, value) for key, value in new.items()))
        except OSError as error:
            self._writable = False
            log.warning("%s after a restart: cannot write %s (%s)", self._again, self._file, error)


class Proven(PersistentCache):
    """Digests whose probes passed on this base, in `proven`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "proven", "probes run again")

    def add(self, key: str) -> None:
        """Remember one; see `note`."""
        self.note({key: ""})


class Hashed(PersistentCache):
    """The sha256 of weights files that look as they did when they were read, in `weights`.

    It decides about routing alone: whatever is loaded is hashed again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "weights", "weights are hashed again")

    def get(self, key: str) -> str | None:
        """The sha256 in hex; None where there is none, or where the line is damaged."""
        value = super().get(key)
        return value if value is not None and _SHA256.fullmatch(value) else None


def _line(key: str, value: str) -> str:
    return f"{key} {value}\n" if value else f"{key}\n"
