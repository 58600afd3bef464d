"""What a store of adapters has: folders, found by their names as the registry finds them, and what the store
says of their files.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from router.registry.format.folder import WEIGHTS
from router.sources.source import RemoteFile, state_of


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of an adapter as a listing has it.

    `mark` changes with the file; `content` only files of the same bytes have, '' where the store says
    nothing of the kind. `modified`: unix seconds, None if not told.
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
    """Seconds since its last change by the store's dates and this machine's clock; 0 if not told."""
    dates = [file.modified for file in folder.files.values()]
    known = [date for date in dates if date is not None]
    return max(0.0, time.time() - max(known)) if known and len(known) == len(dates) else 0.0
