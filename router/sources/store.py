"""What a store of adapters has, and which of its folders are finished there.

Folders are found by their names, as the registry finds them. A store shows an upload file by file. So a new
folder is taken when it looks the same at two looks, and one that replaces another only when it is surely
whole.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS
from router.sources.source import RemoteFile, state_of


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of an adapter as a listing has it.

    `mark` changes with the file; `content` only files of the same bytes have, '' where the store says
    nothing of the kind. `modified`: unix seconds, None if unknown.
    """

    name: str
    size: int
    mark: str
    content: str = ""
    modified: float | None = None
    link: bool = False


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """An adapter folder: where it is below the prefix, NAME or NAME/VERSION, and its files by name."""

    place: str
    files: Mapping[str, Remote]
    pin: str  # changes when a file does; behind the '-' when the weights do

    @classmethod
    def of(cls, place: str, files: Iterable[Remote]) -> RemoteFolder:
        """With its pin."""
        by_name = {file.name: file for file in sorted(files, key=lambda file: file.name)}
        state = state_of({name: file.mark for name, file in by_name.items()})
        weights = by_name[WEIGHTS].mark if WEIGHTS in by_name else ""
        return cls(place, by_name, f"{state}-{sha256(weights.encode()).hexdigest()[:16]}")


class Folders(Protocol):
    """A store that is mirrored. All of it blocks, and raises Passing or a RouterError."""

    @property
    def reference(self) -> str:
        """The store as it is recorded and shown, with a `/` at its end."""
        ...

    def listing(self) -> Mapping[str, RemoteFolder]:
        """All adapter folders by place, NAME or NAME/VERSION."""
        ...

    def folder(self, place: str) -> RemoteFolder:
        """One of them as it is now; without files if it is gone."""
        ...

    def read(self, place: str, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        """The bytes of a file from `start` on."""
        ...


def age(folder: RemoteFolder) -> float:
    """Seconds since its last change by the store's dates and this machine's clock; 0 if unknown."""
    dates = [file.modified for file in folder.files.values()]
    known = [date for date in dates if date is not None]
    return max(0.0, time.time() - max(known)) if known and len(known) == len(dates) else 0.0


# -- which folders are finished


QUIET_SECONDS = 30.0  # nothing changed for so long: the upload is done, or interrupted
OLD_SECONDS = 600.0  # by the store's dates; more than clocks are off by


@dataclass(frozen=True, slots=True)
class StoreChanges:
    """What one look found. `fresh`: how many folders are other than at the last look, or gone since."""

    ready: list[RemoteFolder]
    gone: list[str]
    fresh: int


class Survey:
    """Compares each look with the one before."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[str, float]] = {}  # by place: its pin, and since when it has that
        self._missing: set[str] = set()

    def look(self, there: Mapping[str, RemoteFolder], here: Mapping[str, str], now: float) -> StoreChanges:
        """What of the folders `there` is to be taken, when `here` are those with these pins. `now`: monotonic
        seconds. A folder is gone when two looks do not have it.
        """
        ready: list[RemoteFolder] = []
        fresh = 0
        since: dict[str, tuple[str, float]] = {}
        for place, folder in there.items():
            before = self._since.get(place)
            new = before is None or before[0] != folder.pin
            since[place] = (folder.pin, now) if before is None or new else before
            if here.get(place) == folder.pin:
                continue
            if new:
                fresh += 1
            elif _is_finished(folder, here.get(place), now - since[place][1]):
                ready.append(folder)
        self._since = since
        missing = {place for place in here if place not in there}
        gone = sorted(missing & self._missing)
        fresh += len(missing - self._missing)
        self._missing = missing
        return StoreChanges(ready, gone, fresh)


def _is_finished(folder: RemoteFolder, here: str | None, quiet: float) -> bool:
    """`here`: the pin of what it replaces; `quiet`: seconds for which it was seen to look like this."""
    if quiet >= QUIET_SECONDS or age(folder) >= OLD_SECONDS:
        return True
    if not {CONFIG, WEIGHTS} <= folder.files.keys():
        return False
    if not here:
        return True
    return here.rpartition("-")[2] != folder.pin.rpartition("-")[2] and _manifest_is_last(folder)


def _manifest_is_last(folder: RemoteFolder) -> bool:
    """The sign that an upload is complete, as far as dates tell."""
    manifest = folder.files.get(MANIFEST)
    if manifest is None or manifest.modified is None:
        return False
    dates = [file.modified for file in folder.files.values()]
    return all(date is not None and date <= manifest.modified for date in dates)
