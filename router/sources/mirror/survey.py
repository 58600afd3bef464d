"""Which folders of a store are finished there. A store shows an upload file by file, so what is new is taken
when it looks the same at two looks, and what replaces something only when it is surely whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS
from router.sources.mirror.store import RemoteFolder, age

QUIET_SECONDS = 30.0  # nothing changed for so long: the upload is done, or interrupted
OLD_SECONDS = 600.0  # by the store's dates; more than clocks are off by


@dataclass(frozen=True, slots=True)
class Due:
    """What one look found. `fresh`: how many folders are other than at the last look, or gone since."""

    ready: list[RemoteFolder]
    gone: list[str]
    fresh: int


class Survey:
    """Compares each look with the one before."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[str, float]] = {}  # by place: its pin, and since when it has that
        self._missing: set[str] = set()

    def look(self, there: Mapping[str, RemoteFolder], here: Mapping[str, str], now: float) -> Due:
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
        return Due(ready, gone, fresh)


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
