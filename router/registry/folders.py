"""Adapter folders that may change at any moment: found again and again, and examined when they have stopped
changing.

Three layouts are one: DIR/NAME/, DIR/NAME/VERSION/, and several folders whose manifests give one name.
Finding opens no file: a compare costs one `stat` for each file. What was read of a folder is used only if the
folder looks the same before and after.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from router.built_in import is_built_in
from router.engine.base import AdapterArtifact
from router.errors import AdapterNotFound, AdapterRejected, Unavailable
from router.names import DEFAULT_VERSION, is_version, looks_like_version, name_from_folder
from router.registry.format.artifact import FolderRules, Inspection, inspect_folder, read_artifact
from router.registry.format.folder import (
    CONFIG,
    MANIFEST,
    PROBES,
    REPORT,
    SIGNATURE,
    WEIGHTS,
    Folder,
)
from router.registry.format.manifest import Manifest, ReportCard, read_report
from router.registry.format.untrusted import Code
from router.types import AdapterRef

COUNTING = (MANIFEST, CONFIG, PROBES, SIGNATURE, "chat_template.jinja")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")  # also the refused ones: they explain a refusal
MOST_FILES = 1_000  # of one folder; an adapter has about ten
LONG_UNTOUCHED = 10.0  # seconds; more than clocks of file servers are off by
UNNAMED = "unnamed"
_PASSING = (Code.FOLDER_UNREADABLE, Code.FILE_UNREADABLE, Code.FILE_CHANGED, Code.DIGEST_NOT_LISTED)

FileStamp = tuple[str, int, int, int, int]  # name, bytes, mtime ns, ctime ns, inode


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter version may be. `name` and `version` are what the folders are called, as a default."""

    folder: Path
    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class FoundFolder:
    """An adapter folder as it is now.

    Where `files` are equal, no file that makes an adapter was written or replaced. Logs that a trainer keeps
    writing beside them do not count; the report has a stamp of its own, since it changes no adapter.
    """

    place: Place
    root: Path
    files: tuple[FileStamp, ...] = ()
    report: tuple[FileStamp, ...] = ()
    refused: str = ""  # why the folder is not looked into
    built_in: bool = False  # it comes with lora-router

    @property
    def newest(self) -> float:
        """The last change of any file, unix seconds; 0 without files."""
        return max((file[3] for file in self.files + self.report), default=0) / 1e9

    def same_files(self, other: FoundFolder) -> bool:
        """Whether the adapter in it is the same, as far as that shows from outside."""
        return (self.files, self.refused) == (other.files, other.refused)

    def unchanged(self) -> bool:
        """Whether the adapter in it is as it was found. Blocks."""
        now = self.now()
        return now is not None and self.same_files(now)

    def now(self) -> FoundFolder | None:
        """The folder as it is now; None if it is gone. Blocks."""
        try:
            return look_at(self.place, self.root)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class Scan:
    """All adapter folders, in the order in which duplicates win, and the adapters folders not readable."""

    found: Mapping[Path, FoundFolder]
    unreadable: Mapping[Path, str]


class Scanner:
    """Compares adapters folders with what they were. Used from one worker thread at a time.

    Any scan finds new and removed folders. It finds changed files in `dirty`, what the kernel reported, and,
    where it looks at `every_file`, in all folders.
    """

    def __init__(self, dirs: Sequence[Path]) -> None:
        self._dirs = tuple(dirs)
        self._tops: dict[Path, dict[Path, FoundFolder]] = {}

    def scan(self, dirty: Collection[Path] = (), every_file: bool = True) -> Scan:
        """All adapter folders. An `every_file` scan costs one `stat` for each file, another one costs a
        listing of each adapters folder and what is in `dirty`.
        """
        touched = {parent for path in dirty for parent in (path, *path.parents)}
        unreadable: dict[Path, str] = {}
        now: dict[Path, dict[Path, FoundFolder]] = {}
        for top, root in self._list(unreadable):
            old = self._tops.get(top)
            if every_file or old is None or top in touched:
                now[top] = _look_into(top, root, old or {})
            else:
                now[top] = old
        for top, kept in self._tops.items():
            if any(top.is_relative_to(root) for root in unreadable):
                now.setdefault(top, kept)
        self._tops = now
        return Scan({path: found for top in now.values() for path, found in top.items()}, unreadable)

    def _list(self, unreadable: dict[Path, str]) -> Iterator[tuple[Path, Path]]:
        """What is in the adapters folders, each with its folder. A folder overrides a later built-in one of
        its name.
        """
        seen: set[str] = set()
        for given in self._dirs:
            root = Path(os.path.realpath(given))
            try:
                with os.scandir(root) as entries:
                    names = sorted(e.name for e in entries if not is_ignored(e.name) and e.is_dir())
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable[root] = error.strerror or type(error).__name__
                continue
            yield from (
                (root / n, root) for n in names if not (n in seen and is_built_in(root / n, "adapters"))
            )
            seen.update(names)


def _look_into(top: Path, root: Path, old: Mapping[Path, FoundFolder]) -> dict[Path, FoundFolder]:
    """What is in an entry of an adapters folder; what looks as it did is the very same object."""
    try:
        inside = places(top)
    except FileNotFoundError:
        return {}
    except OSError:
        inside = [Place(top, top.name)]  # it says why
    found: dict[Path, FoundFolder] = {}
    for place in inside:
        with suppress(FileNotFoundError):
            now = look_at(place, root)
            before = old.get(place.folder)
            found[place.folder] = before if before is not None and before == now else now
    return found


def is_ignored(name: str) -> bool:
    """Hidden and temporary names: what editors, copiers and operators use for what is not finished."""
    return name.startswith(".") or name.endswith((".tmp", "~", ".part", ".partial", ".swp"))


def places(top: Path) -> list[Place]:
    """The adapter versions of one entry of an adapters folder.

    Folders inside it are versions when they are called like one or bring their own manifest, and `top` is
    no adapter itself (trainers leave checkpoint folders beside one).
    """
    inner: list[Place] = []
    for entry in _entries(top):
        if entry.name in (MANIFEST, CONFIG) or entry.name.endswith(".safetensors"):
            return [Place(top, top.name)]
        if entry.is_dir() and _is_version(entry):
            inner.append(Place(Path(entry.path), top.name, entry.name))
    return sorted(inner, key=lambda p: p.version) or [Place(top, top.name)]


def _is_version(entry: os.DirEntry[str]) -> bool:
    return looks_like_version(entry.name) or os.path.lexists(os.path.join(entry.path, MANIFEST))


def look_at(place: Place, root: Path) -> FoundFolder:
    """What a folder, somewhere below `root`, looks like now; one behind a symbolic link is not looked into.

    Raises FileNotFoundError when it is gone.
    """
    top = place.folder.parent if place.version else place.folder
    found = FoundFolder(place, root, built_in=is_built_in(top, "adapters"))
    try:
        if any(os.path.islink(p) for p in (place.folder, place.folder.parent) if p != root):
            return replace(found, refused="is a symbolic link, and none is followed; copy the folder in")
        stamps = sorted(_stamps(place.folder))
    except FileNotFoundError:
        raise
    except OSError as error:
        return replace(found, refused=f"cannot be read: {error.strerror}")
    files = tuple(stamp for stamp in stamps if stamp[0] != REPORT)
    return replace(found, files=files, report=tuple(stamp for stamp in stamps if stamp[0] == REPORT))


def _stamps(folder: Path) -> Iterator[FileStamp]:
    for entry in _entries(folder):
        counts = entry.name in COUNTING or entry.name.endswith(WEIGHT_SUFFIXES)
        if entry.name == REPORT or (counts and not entry.is_dir(follow_symlinks=False)):
            with suppress(FileNotFoundError):  # gone since it was listed: as if it had not been
                info = entry.stat(follow_symlinks=False)
                yield entry.name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [e for e in islice(found, MOST_FILES) if not is_ignored(e.name)]


# -- which folders have stopped changing


@dataclass(slots=True)
class _Watched:
    found: FoundFolder
    since: float  # monotonic: how long it has looked like this
    done: bool = False  # it was examined as it looks now
    missing: float | None = None  # since when it is not there


class Settling:
    """Which folders have looked the same for `settle` seconds or longer: only those are examined.

    A bad one that has not looked the same for `grace` seconds may still be copied. Used from one thread at a
    time.
    """

    def __init__(self, dirs: Sequence[Path], settle: float, grace: float = 0.0) -> None:
        self._scanner, self._settle, self._grace = Scanner(dirs), settle, grace
        self._watched: dict[Path, _Watched] = {}
        self._first = True

    def look(
        self, dirty: Collection[Path], every_file: bool
    ) -> tuple[list[FoundFolder], list[Path], Mapping[Path, str]]:
        """Scan; gives what `due` gives, and the adapters folders that cannot be read. Blocks."""
        scan, now = self._scanner.scan({*dirty, *self.awaited()}, every_file), time.monotonic()
        self.note(scan, now)
        return *self.due(now), scan.unreadable

    def note(self, scan: Scan, now: float) -> None:
        """Folders are like this now."""
        for path, found in scan.found.items():
            watched = self._watched.get(path)
            if watched is None or watched.found != found:
                old = time.time() - found.newest if self._first else 0.0
                # At start-up the file system's own times count: what is old need not be waited for.
                self._watched[path] = _Watched(found, now - (old if old > LONG_UNTOUCHED else 0.0))
            else:
                watched.missing = None
        for path, watched in self._watched.items():
            if path not in scan.found and watched.missing is None:
                watched.missing = now
        self._first = False

    def due(self, now: float) -> tuple[list[FoundFolder], list[Path]]:
        """Folders to be examined, and those that are gone: each looks like this long enough."""
        there = [w.found for w in self._open() if w.missing is None and now - w.since >= self._settle]
        missing = [(path, w.missing) for path, w in self._watched.items() if w.missing is not None]
        gone = [path for path, since in missing if now - since >= self._settle]
        for path in gone:
            del self._watched[path]
        return there, gone

    def awaited(self) -> set[Path]:
        """Folders that must be looked at again soon."""
        return {w.found.place.folder for w in self._open()}

    def done(self, found: FoundFolder) -> None:
        """It was examined; it comes again when it changes."""
        watched = self._watched.get(found.place.folder)
        if watched is not None and watched.found == found:
            watched.done = True

    def again(self, path: Path) -> None:
        """Let it come again although it has not changed."""
        if path in self._watched:
            self._watched[path].done = False

    def is_fresh(self, found: FoundFolder, now: float) -> bool:
        """Whether it may still be copied."""
        watched = self._watched.get(found.place.folder)
        return watched is None or watched.found != found or now - watched.since < self._grace

    def _open(self) -> Iterator[_Watched]:
        return (w for w in self._watched.values() if not w.done or w.missing is not None)


# -- reading: what was read is used only if the folder was whole and did not change


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A folder and what it holds. `problem` is empty if it can be served as far as one can see.

    `passing`: the problem may go away although the folder does not change. `report`: what was read, or why
    it cannot be used; None where there is none. `weights_sha256` is known where it is compared with a report.
    """

    found: FoundFolder
    ref: AdapterRef
    inspection: Inspection | None
    problem: str = ""
    passing: bool = False
    report: ReportCard | str | None = None
    weights_sha256: str = ""


def examine(rules: FolderRules, found: FoundFolder) -> Examined | None:
    """Look at a folder and its report; None if it changed meanwhile and must be looked at again. Blocks."""
    place = found.place
    if found.refused:
        problem = f"folder {place.folder.name!r} {found.refused}"
        return Examined(found, identity(place, None), None, problem, passing=True)
    inspection = inspect_folder(place.folder, rules)
    may_parse = rules.trust is None or inspection.ok
    report = read_report(place.folder) if found.report and may_parse else None
    if not found.unchanged():
        return None
    slim = replace(inspection, sites=(), probes=())  # thousands of these are kept
    passing = any(f.code in _PASSING for f in inspection.refusals)
    return Examined(found, identity(place, inspection), slim, inspection.error, passing, report)


def identity(place: Place, inspection: Inspection | Manifest | None) -> AdapterRef:
    """Name and version: what the manifest says, where it says nothing what the folders are called."""
    given = inspection.name if inspection else ""
    name, version = given, inspection.version if inspection else DEFAULT_VERSION
    if place.version:
        if not given or given == name_from_folder(place.folder.name):
            name = name_from_folder(place.name)
        if version == DEFAULT_VERSION and is_version(place.version):
            version = place.version
    return AdapterRef(name or name_from_folder(place.name) or UNNAMED, version)


def read_whole(rules: FolderRules, found: FoundFolder) -> tuple[AdapterArtifact, Inspection]:
    """Read a folder that looks as it did when it was `found`, before and after. Blocks.

    Raises Unavailable if it does not (nothing is known of it then), AdapterNotFound if it is gone, and what
    `read_artifact` raises.
    """
    if found.now() is None:
        raise AdapterNotFound(found.place.name, "; its folder was removed")
    if not found.unchanged():
        raise _changing(found)
    if found.refused:
        raise AdapterRejected(f"adapter folder {found.place.folder.name!r} {found.refused}")
    try:
        artifact, inspection = read_artifact(found.place.folder, rules)
    except AdapterRejected as error:
        if not found.unchanged() or Code.FILE_CHANGED in error.metadata.get("codes", ""):
            raise _changing(found) from error
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Unavailable(f"adapter folder {found.place.folder.name!r} cannot be read: {reason}") from error
    if not found.unchanged():
        raise _changing(found)
    return artifact, replace(inspection, sites=())


def _changing(found: FoundFolder) -> Unavailable:
    return Unavailable(
        f"the files of adapter folder {found.place.folder.name!r} are being changed; try again"
    )


def weights_sha256(path: Path) -> str:
    """sha256 of the weights file of an adapter folder, in hex. Blocks; raises FolderError."""
    with Folder.open(path) as folder, folder.file(WEIGHTS) as weights:
        return weights.sha256()


def weights_key(found: FoundFolder) -> str:
    """Names a weights file as it looks now: another one, or the same after a write, has another key."""
    weights = [file for file in found.files if file[0] == WEIGHTS]
    return hashlib.sha256(os.fsencode(f"{found.place.folder} {weights}")).hexdigest()[:32]
