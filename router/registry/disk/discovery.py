"""Finding adapter folders again and again, cheaply."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from router.registry.disk.places import Place, Stamp, is_ignored, places, report_stamp, stamp

SHARE = 200  # folders whose files are looked at in each compare even if nothing hints at a change


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter folder as it is now."""

    place: Place
    root: Path
    stamp: Stamp
    report: Stamp = field(default=Stamp(), compare=False)  # read on its own, whatever becomes of the adapter


@dataclass(frozen=True, slots=True)
class Scan:
    """All adapter folders, in the order in which duplicates win, and the adapters folders not readable."""

    found: Mapping[Path, Found]
    unreadable: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Top:
    folders: Mapping[Path, tuple[int, int]]  # ctime ns and inode: new, removed and renamed files show here
    found: Mapping[Path, Found]


class Scanner:
    """Compares adapters folders with what they were. Used from one worker thread at a time.

    New, removed and renamed files change their folder, so one `stat` for each folder finds them. Files
    written in place do not: they are found through `dirty` (what the watcher heard of) or in turns.
    """

    def __init__(self, dirs: Sequence[Path]) -> None:
        self.dirs = tuple(dirs)
        self._tops: dict[Path, _Top] = {}
        self._turn = 0

    def scan(self, dirty: Collection[Path] = (), *, everything: bool = True) -> Scan:
        """All adapter folders. Files are looked at in `dirty` ones and in turns, or in `everything`."""
        unreadable: dict[Path, str] = {}
        tops = list(self._list(unreadable))
        share = range(len(tops)) if everything else self._share(len(tops))
        due = {tops[i][0] for i in share}
        dirty_tops = {parent for path in dirty for parent in (path, *path.parents)}
        now: dict[Path, _Top] = {}
        for top, root in tops:
            old = self._tops.get(top)
            if old is None or top in due or top in dirty_tops or _folders(old.folders) != old.folders:
                now[top] = _look(top, root)
            else:
                now[top] = old
        for top, kept in self._tops.items():
            if any(top.is_relative_to(root) for root in unreadable):
                now.setdefault(top, kept)
        self._tops = now
        return Scan({p: f for top in now.values() for p, f in top.found.items()}, unreadable)

    def _list(self, unreadable: dict[Path, str]) -> Iterator[tuple[Path, Path]]:
        for given in self.dirs:
            root = Path(os.path.realpath(given))
            try:
                with os.scandir(root) as entries:
                    names = sorted(e.name for e in entries if not is_ignored(e.name) and e.is_dir())
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable[root] = error.strerror or type(error).__name__
                continue
            yield from ((root / name, root) for name in names)

    def _share(self, count: int) -> Collection[int]:
        start, self._turn = self._turn, self._turn + SHARE
        if self._turn >= count:
            self._turn = 0
        return range(start, min(start + SHARE, count))


def _look(top: Path, root: Path) -> _Top:
    found: dict[Path, Found] = {}
    # The folders first: what changes while the files are looked at is seen again the next time.
    try:
        inside = places(top)
    except FileNotFoundError:
        return _Top({}, {})
    except OSError:
        inside = [Place(top, top.name)]  # its stamp says why
    folders = _folders([top, *(p.folder for p in inside)])
    for place in inside:
        try:
            found[place.folder] = Found(place, root, stamp(place.folder, root), report_stamp(place.folder))
        except FileNotFoundError:
            continue
    return _Top(folders, found)


def _folders(paths: Collection[Path]) -> dict[Path, tuple[int, int]]:
    stats: dict[Path, tuple[int, int]] = {}
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            stats[path] = (0, 0)
        else:
            stats[path] = (info.st_ctime_ns, info.st_ino)
    return stats
