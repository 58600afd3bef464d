"""Adapter folders that may change at any moment: found again and again, and read when they have stopped
changing.

Three layouts are one: DIR/NAME/, DIR/NAME/VERSION/, and several folders whose manifests give one name.
Finding opens no file: a compare costs one `stat` for each file. What was read of a folder is used only if the
folder looks the same before and after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from router.built_in import is_built_in
from router.engine.base import AdapterArtifact, Engine
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
    FolderError,
)
from router.registry.format.manifest import Manifest, parse_manifest
from router.registry.format.untrusted import MANIFEST_BYTES, Code
from router.types import AdapterRef

COUNTING = (MANIFEST, CONFIG, PROBES, SIGNATURE, "chat_template.jinja")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")  # also the refused ones: they explain a refusal
MOST_FILES = 1_000  # of one folder; an adapter has about ten
LONG_UNTOUCHED = 10.0  # seconds; more than clocks of file servers are off by

FileStamp = tuple[str, int, int, int, int]  # name, bytes, mtime ns, ctime ns, inode


@dataclass(frozen=True, slots=True)
class Stamp:
    """A folder from outside. Equal stamps: no file that counts was written or replaced.

    Logs and reports that a trainer keeps writing beside an adapter do not count.
    """

    files: tuple[FileStamp, ...] = ()
    refused: str = ""  # why the folder is not looked into

    @property
    def newest(self) -> float:
        """The last change of any file, unix seconds; 0 without files."""
        return max((f[3] for f in self.files), default=0) / 1e9


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where an adapter version may be. `name` and `version` are what the folders are called, as a default."""

    folder: Path
    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class FoundFolder:
    """An adapter folder as it is now."""

    place: AdapterPlace
    root: Path
    stamp: Stamp
    report: Stamp = field(default=Stamp(), compare=False)  # read on its own, whatever becomes of the adapter
    built_in: bool = False  # it comes with lora-router


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two scans: folders that are new or look different, and those that are gone."""

    there: tuple[FoundFolder, ...] = ()
    missing: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """All adapter folders, in the order in which duplicates win, and the adapters folders not readable."""

    found: Mapping[Path, FoundFolder]
    unreadable: Mapping[Path, str] = field(default_factory=dict)

    def since(self, before: Scan) -> Changes:
        """What is not as it was. A scan gives the very same object for a folder that it did not look into."""
        there = [found for path, found in self.found.items() if before.found.get(path) is not found]
        return Changes(tuple(there), tuple(path for path in before.found if path not in self.found))


class Scanner:
    """Compares adapters folders with what they were. Used from one worker thread at a time.

    Any scan finds new and removed folders. It finds changed files in `dirty`, what the kernel reported, and,
    where it looks at `every_file`, in all folders.
    """

    def __init__(self, dirs: Sequence[Path]) -> None:
        self._dirs = tuple(dirs)
        self._tops: dict[Path, dict[Path, FoundFolder]] = {}
        self._paths: dict[Path, dict[str, Path]] = {}  # of each adapters folder: what is in it, by name

    def scan(self, dirty: Collection[Path] = (), every_file: bool = True) -> Scan:
        """All adapter folders. An `every_file` scan costs one `stat` for each file, another one costs a
        listing of each adapters folder and what is in `dirty`.
        """
        unreadable: dict[Path, str] = {}
        tops = dict(self._list(unreadable))
        due = tops.keys() if every_file else self._touched(dirty)
        now: dict[Path, dict[Path, FoundFolder]] = {}
        for top, root in tops.items():
            old = self._tops.get(top)
            now[top] = _look(top, root, old or {}) if old is None or top in due else old
        if unreadable:
            for top, kept in self._tops.items():
                if any(top.is_relative_to(root) for root in unreadable):
                    now.setdefault(top, kept)
        self._tops = now
        return Scan({p: f for top in now.values() for p, f in top.items()}, unreadable)

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
            known = self._paths.get(root, {})
            paths = {name: known.get(name) or root / name for name in names}
            for name in seen.intersection(names):
                if is_built_in(paths[name], "adapters"):
                    del paths[name]
            seen.update(names)
            self._paths[root] = paths
            yield from ((top, root) for top in paths.values())

    def _touched(self, dirty: Collection[Path]) -> set[Path]:
        """The entries of the adapters folders in which these paths are."""
        touched: set[Path] = set()
        for root, paths in self._paths.items():
            inside = f"{root}{os.sep}"
            for path in map(str, dirty):
                if path.startswith(inside) and (top := paths.get(path[len(inside) :].partition(os.sep)[0])):
                    touched.add(top)
        return touched


def _look(top: Path, root: Path, old: Mapping[Path, FoundFolder]) -> dict[Path, FoundFolder]:
    """What is in an entry of an adapters folder; what looks as it did is the very same object."""
    found: dict[Path, FoundFolder] = {}
    try:
        inside = places(top)
    except FileNotFoundError:
        return found
    except OSError:
        inside = [AdapterPlace(top, top.name)]  # its stamp says why
    for place in inside:
        try:
            stamps = stamp_of(place.folder, root), report_stamp_of(place.folder)
            now = FoundFolder(place, root, *stamps, built_in=is_built_in(top, "adapters"))
        except FileNotFoundError:
            continue
        before = old.get(place.folder)
        same = before is not None and (before, before.report) == (now, now.report)
        found[place.folder] = before if same and before is not None else now
    return found


def is_ignored(name: str) -> bool:
    """Hidden and temporary names: what editors, copiers and operators use for what is not finished."""
    return name.startswith(".") or name.endswith((".tmp", "~", ".part", ".partial", ".swp"))


def places(top: Path) -> list[AdapterPlace]:
    """The adapter versions of one entry of an adapters folder.

    Folders inside it are versions when they are called like one or bring their own manifest, and `top` is
    no adapter itself (trainers leave checkpoint folders beside one).
    """
    inner: list[AdapterPlace] = []
    for entry in _entries(top):
        if entry.name in (MANIFEST, CONFIG) or entry.name.endswith(".safetensors"):
            return [AdapterPlace(top, top.name)]
        if entry.is_dir() and _is_version_folder(entry):
            inner.append(AdapterPlace(Path(entry.path), top.name, entry.name))
    return sorted(inner, key=lambda p: p.version) or [AdapterPlace(top, top.name)]


def _is_version_folder(entry: os.DirEntry[str]) -> bool:
    return looks_like_version(entry.name) or os.path.lexists(os.path.join(entry.path, MANIFEST))


def stamp_of(folder: Path, root: Path) -> Stamp:
    """What `folder`, somewhere below `root`, looks like now; one behind a symbolic link is not looked into.

    Raises FileNotFoundError when it is gone.
    """
    try:
        if any(os.path.islink(p) for p in (folder, folder.parent) if p != root):
            return Stamp(refused="is a symbolic link, and none is followed; copy the folder in")
        return Stamp(tuple(sorted(_stamps(folder))))
    except FileNotFoundError:
        raise
    except OSError as error:
        return Stamp(refused=f"cannot be read: {error.strerror}")


def report_stamp_of(folder: Path) -> Stamp:
    """What the report beside an adapter looks like; no files where there is none."""
    try:
        info = os.lstat(folder / REPORT)
    except OSError:
        return Stamp()
    return Stamp(((REPORT, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino),))


def _stamps(folder: Path) -> Iterator[FileStamp]:
    for entry in _entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            yield from _file_stamp(entry, entry.name)


def _file_stamp(entry: os.DirEntry[str], name: str) -> Iterator[FileStamp]:
    if entry.name not in COUNTING and not entry.name.endswith(WEIGHT_SUFFIXES):
        return
    try:
        info = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since it was listed: as if it had not been
        return
    yield name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [e for e in islice(found, MOST_FILES) if not is_ignored(e.name)]


@dataclass(slots=True)
class _Watched:
    found: FoundFolder
    stamp: Stamp
    since: float  # monotonic: how long it has looked like this


@dataclass(frozen=True, slots=True)
class DueFolders:
    """What one look found. `awaited`: folders that must be looked at again soon."""

    ready: list[FoundFolder] = field(default_factory=list)
    gone: list[Path] = field(default_factory=list)
    awaited: list[Path] = field(default_factory=list)

    @property
    def unsettled(self) -> bool:
        """Another look is needed soon."""
        return bool(self.awaited)


class Debouncer:
    """Which folders have looked the same for `settle` seconds or longer: only those are read.

    A look costs what has changed and what is still to be examined, however many folders there are.
    """

    def __init__(self, settle: float, of: Callable[[FoundFolder], Stamp] = lambda found: found.stamp) -> None:
        self._settle, self._of = settle, of
        self._watched: dict[Path, _Watched] = {}
        self._open: dict[Path, None] = {}  # not examined as they look now
        self._missing: dict[Path, float] = {}  # since when
        self._first = True

    def look(self, changes: Changes, now: float) -> DueFolders:
        """Folders that look as they did `settle` seconds ago and were not examined like this, or are gone."""
        for found in changes.there:
            self._note(found, now)
        for path in changes.missing:
            if path in self._watched:
                self._missing.setdefault(path, now)
        self._first = False
        due = DueFolders()
        for path in self._open:
            watched = self._watched[path]
            if path in self._missing:
                continue
            if now - watched.since >= self._settle:
                due.ready.append(watched.found)
            else:
                due.awaited.append(path)
        self._look_for_missing(now, due)
        return due

    def _note(self, found: FoundFolder, now: float) -> None:
        path, stamp = found.place.folder, self._of(found)
        self._missing.pop(path, None)
        watched = self._watched.get(path)
        if watched is None or watched.stamp != stamp:
            since = now - self._untouched(found) if self._first else now
            self._watched[path] = _Watched(found, stamp, since)
            self._open[path] = None
        else:
            watched.found = found

    def _look_for_missing(self, now: float, due: DueFolders) -> None:
        for path, since in tuple(self._missing.items()):
            if now - since >= self._settle:
                del self._watched[path], self._missing[path]
                self._open.pop(path, None)
                due.gone.append(path)
            else:
                due.awaited.append(path)  # replaced by renaming, perhaps

    def done(self, found: Iterable[FoundFolder]) -> None:
        """These were examined; they come again when they change."""
        for one in found:
            watched = self._watched.get(one.place.folder)
            if watched is not None and watched.stamp == self._of(one):
                self._open.pop(one.place.folder, None)

    def is_done(self, found: FoundFolder) -> bool:
        """Whether it was examined as it looks now."""
        path = found.place.folder
        watched = self._watched.get(path)
        return watched is not None and path not in self._open and watched.stamp == self._of(found)

    def again(self, path: Path) -> None:
        """Let it come again although it has not changed."""
        if path in self._watched:
            self._open[path] = None

    def quiet(self, found: FoundFolder, now: float) -> float:
        """Seconds for which it has looked like this."""
        watched = self._watched.get(found.place.folder)
        return now - watched.since if watched is not None and watched.stamp == self._of(found) else 0.0

    def _untouched(self, found: FoundFolder) -> float:
        """At start-up the file system's own times count: what is old need not be waited for."""
        age = time.time() - self._of(found).newest
        return age if age > LONG_UNTOUCHED else 0.0


# -- reading: what was read is used only if the folder was whole and did not change


UNNAMED = "unnamed"
_PASSING = (Code.FOLDER_UNREADABLE, Code.FILE_UNREADABLE, Code.FILE_CHANGED, Code.DIGEST_NOT_LISTED)


class FolderReader:
    """Reads PEFT folders for the base of `engine`, which must have started; `rules` has the rest of what they
    are examined against. All of it blocks: call it from worker threads.
    """

    def __init__(self, engine: Engine, rules: FolderRules) -> None:
        self._engine, self._rules = engine, rules

    @property
    def vets(self) -> bool:
        """Whether nobody may parse anything of a folder before `inspect` found no problem with it."""
        return self._rules.trust is not None

    def inspect(self, folder: Path) -> Inspection:
        """Everything but the weights; never raises for what is in the folder."""
        return inspect_folder(folder, replace(self._rules, base=self._engine.info))

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        """Everything, once. Raises AdapterRejected, ResourceExhausted."""
        return read_artifact(folder, replace(self._rules, base=self._engine.info))


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A folder and what it holds. `problem` is empty if it can be served as far as one can see.

    `passing`: the problem may go away although the folder does not change.
    """

    found: FoundFolder
    ref: AdapterRef
    inspection: Inspection | None
    problem: str
    passing: bool = False


def examine(reader: FolderReader, found: FoundFolder) -> Examined | None:
    """Look at a folder; None if it changed meanwhile and must be looked at again."""
    place = found.place
    if found.stamp.refused:
        problem = f"folder {place.folder.name!r} {found.stamp.refused}"
        return Examined(found, identity(place, None), None, problem, passing=True)
    inspection = reader.inspect(place.folder)
    if not unchanged(found):
        return None
    slim = replace(inspection, sites=(), probes=())  # thousands of these are kept
    passing = any(f.code in _PASSING for f in inspection.refusals)
    return Examined(found, identity(place, inspection), slim, inspection.error, passing)


def sketch(found: FoundFolder) -> Examined | None:
    """What the manifest alone says: enough to be asked for by name, until there is time to `examine`.

    None where even that is not plain. Takes a tenth of the time.
    """
    if found.stamp.refused:
        return None
    try:
        with Folder.open(found.place.folder) as folder:
            present = MANIFEST in folder.names()
            data = folder.read(MANIFEST, MANIFEST_BYTES) if present else None
    except FolderError:
        return None
    manifest, findings = parse_manifest(data, found.place.folder.name)
    size = sum(file[1] for file in found.stamp.files)
    seen = Inspection(
        name=manifest.name,
        version=manifest.version,
        manifest=manifest,
        rank=0,
        target_modules=(),
        size_bytes=size,
        findings=findings,
        base_model=manifest.base.model,
    )
    return Examined(found, identity(found.place, seen), seen, "") if seen.ok else None


def identity(place: AdapterPlace, inspection: Inspection | Manifest | None) -> AdapterRef:
    """Name and version: what the manifest says, where it says nothing what the folders are called."""
    given = inspection.name if inspection else ""
    name, version = given, inspection.version if inspection else DEFAULT_VERSION
    if place.version:
        if not given or given == name_from_folder(place.folder.name):
            name = name_from_folder(place.name)
        if version == DEFAULT_VERSION and is_version(place.version):
            version = place.version
    return AdapterRef(name or name_from_folder(place.name) or UNNAMED, version)


@dataclass(frozen=True, slots=True)
class ReadFolder:
    """An adapter in memory, with its probes."""

    artifact: AdapterArtifact
    inspection: Inspection


def read_whole(reader: FolderReader, found: FoundFolder) -> ReadFolder:
    """Read a folder that looks as it did when it was `found`, before and after.

    Raises Unavailable if it does not (nothing is known of it then), AdapterNotFound if it is gone, and what
    FolderReader.read raises.
    """
    if _stamp_now(found) is None:
        raise AdapterNotFound(found.place.name, "; its folder was removed")
    if not unchanged(found):
        raise _changing(found)
    if found.stamp.refused:
        raise AdapterRejected(f"adapter folder {found.place.folder.name!r} {found.stamp.refused}")
    try:
        artifact, inspection = reader.read(found.place.folder)
    except AdapterRejected as error:
        if not unchanged(found) or Code.FILE_CHANGED in error.metadata.get("codes", ""):
            raise _changing(found) from error
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Unavailable(f"adapter folder {found.place.folder.name!r} cannot be read: {reason}") from error
    if not unchanged(found):
        raise _changing(found)
    return ReadFolder(artifact, replace(inspection, sites=()))


def weights_sha256(path: Path) -> str:
    """sha256 of the weights file of an adapter folder, in hex. Blocks; raises FolderError."""
    with Folder.open(path) as folder, folder.file(WEIGHTS) as weights:
        return weights.sha256()


def _changing(found: FoundFolder) -> Unavailable:
    return Unavailable(
        f"the files of adapter folder {found.place.folder.name!r} are being changed; try again"
    )


def unchanged(found: FoundFolder) -> bool:
    """Whether the folder looks as it did when it was found. Blocks."""
    return _stamp_now(found) == found.stamp


def _stamp_now(found: FoundFolder) -> Stamp | None:
    try:
        return stamp_of(found.place.folder, found.root)
    except FileNotFoundError:
        return None
