"""Which folders have stopped changing: only those are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from router.registry.disk.discovery import Found, Scan
from router.registry.disk.places import Stamp

LONG_UNTOUCHED = 10.0  # seconds; more than clocks of file servers are off by


@dataclass(slots=True)
class _Watched:
    stamp: Stamp
    since: float  # monotonic: how long it has looked like this
    done: bool = False  # was examined like this
    missing_since: float | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """What one look found. `unsettled`: another look is needed soon."""

    ready: list[Found] = field(default_factory=list)
    gone: list[Path] = field(default_factory=list)
    unsettled: bool = False


class Settler:
    """Follows folders over looks at least `settle` seconds apart."""

    def __init__(self, settle: float, of: Callable[[Found], Stamp] = lambda found: found.stamp) -> None:
        self.settle, self._of = settle, of
        self._watched: dict[Path, _Watched] = {}
        self._first = True

    def look(self, scan: Scan, now: float) -> Due:
        """Folders that look as they did `settle` seconds ago and were not examined like this, or are gone."""
        due = Due()
        unsettled = False
        for path, found in scan.found.items():
            watched = self._watched.get(path)
            stamp = self._of(found)
            if watched is None or watched.stamp != stamp:
                since = now - self._untouched(found) if self._first else now
                watched = self._watched[path] = _Watched(stamp, since)
            watched.missing_since = None
            if watched.done:
                continue
            if now - watched.since >= self.settle:
                due.ready.append(found)
            else:
                unsettled = True
        self._first = False
        unsettled |= self._look_for_missing(scan, now, due)
        return Due(due.ready, due.gone, unsettled)

    def _look_for_missing(self, scan: Scan, now: float, due: Due) -> bool:
        unsettled = False
        for path in [p for p in self._watched if p not in scan.found]:
            watched = self._watched[path]
            if watched.missing_since is None:
                watched.missing_since = now
            if now - watched.missing_since >= self.settle:
                del self._watched[path]
                due.gone.append(path)
            else:
                unsettled = True  # replaced by renaming, perhaps
        return unsettled

    def done(self, found: Iterable[Found]) -> None:
        """These were examined; they come again when they change."""
        for one in found:
            watched = self._watched.get(one.place.folder)
            if watched is not None and watched.stamp == self._of(one):
                watched.done = True

    def is_done(self, found: Found) -> bool:
        """Whether it was examined as it looks now."""
        watched = self._watched.get(found.place.folder)
        return watched is not None and watched.done and watched.stamp == self._of(found)

    def again(self, path: Path) -> None:
        """Let it come again although it has not changed."""
        if path in self._watched:
            self._watched[path].done = False

    def quiet(self, found: Found, now: float) -> float:
        """Seconds for which it has looked like this."""
        watched = self._watched.get(found.place.folder)
        return now - watched.since if watched is not None and watched.stamp == self._of(found) else 0.0

    def _untouched(self, found: Found) -> float:
        """At start-up the file system's own times count: what is old need not be waited for."""
        age = time.time() - self._of(found).newest
        return age if age > LONG_UNTOUCHED else 0.0
