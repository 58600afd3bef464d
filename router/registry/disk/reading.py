"""Reading folders that may change at any moment: what was read is used only if it was whole and one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from router.engine.base import AdapterArtifact, Engine
from router.errors import AdapterNotFound, AdapterRejected, Unavailable
from router.registry.disk.places import MANIFEST, Found, Place, Scan, Stamp, stamp
from router.registry.format import limits
from router.registry.format.artifact import EqualsBase, inspect_folder, read_artifact
from router.registry.format.codes import Code
from router.registry.format.examine import Inspection
from router.registry.format.folder import Folder, FolderError
from router.registry.format.manifest import parse_manifest
from router.registry.format.names import DEFAULT_VERSION, is_version, name_from_folder
from router.types import AdapterRef

# Which folders have stopped changing: only those are read.


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


UNNAMED = "unnamed"
_PASSING = (Code.FOLDER_UNREADABLE, Code.FILE_UNREADABLE, Code.FILE_CHANGED)


class Reader(Protocol):
    """How folders are looked at and read. Both block; they are called in worker threads."""

    def inspect(self, folder: Path) -> Inspection:
        """Everything but the weights; never raises for what is in the folder."""
        ...

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        """Everything, once. Raises AdapterRejected, ResourceExhausted."""
        ...


class FolderReader:
    """Reads PEFT folders for the base of `engine`, which must have started."""

    def __init__(
        self,
        engine: Engine,
        max_rank: int,
        ignore_fields: Collection[str] = (),
        equals_base: EqualsBase | None = None,
    ) -> None:
        self._engine, self._max_rank = engine, max_rank
        self._ignore_fields, self._equals_base = tuple(ignore_fields), equals_base

    def inspect(self, folder: Path) -> Inspection:
        """See Reader."""
        return inspect_folder(
            folder,
            self._engine.info,
            max_rank=self._max_rank,
            ignore_fields=self._ignore_fields,
            equals_base=self._equals_base,
        )

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        """See Reader."""
        return read_artifact(
            folder,
            self._engine.info,
            max_rank=self._max_rank,
            ignore_fields=self._ignore_fields,
            equals_base=self._equals_base,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A folder and what it holds. `problem` is empty if it can be served as far as one can see.

    `passing`: the problem may go away although the folder does not change.
    """

    found: Found
    ref: AdapterRef
    inspection: Inspection | None
    problem: str
    passing: bool = False


def examine(reader: Reader, found: Found) -> Examined | None:
    """Look at a folder; None if it changed meanwhile and must be looked at again."""
    place = found.place
    if found.stamp.refused:
        problem = f"folder {place.folder.name!r} {found.stamp.refused}"
        return Examined(found, identity(place, None), None, problem, passing=True)
    inspection = reader.inspect(place.folder)
    if _stamp_now(found) != found.stamp:
        return None
    slim = replace(inspection, sites=(), probes=())  # thousands of these are kept
    passing = any(f.code in _PASSING for f in inspection.refusals)
    return Examined(found, identity(place, inspection), slim, inspection.error, passing)


def sketch(found: Found) -> Examined | None:
    """What the manifest alone says: enough to be asked for by name, until there is time to `examine`.

    None where even that is not plain. Takes a tenth of the time.
    """
    if found.stamp.refused:
        return None
    try:
        with Folder.open(found.place.folder) as folder:
            present = folder.entry(MANIFEST) is not None
            data = folder.read(MANIFEST, limits.MANIFEST_BYTES) if present else None
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
        fingerprint="",
        base_model=manifest.base.model,
    )
    return Examined(found, identity(found.place, seen), seen, "") if seen.ok else None


def identity(place: Place, inspection: Inspection | None) -> AdapterRef:
    """Name and version: what the manifest says, where it says nothing what the folders are called."""
    said = inspection.name if inspection else ""
    name, version = said, inspection.version if inspection else DEFAULT_VERSION
    if place.version:
        if not said or said == name_from_folder(place.folder.name):
            name = name_from_folder(place.name)
        if version == DEFAULT_VERSION and is_version(place.version):
            version = place.version
    return AdapterRef(name or name_from_folder(place.name) or UNNAMED, version)


@dataclass(frozen=True, slots=True)
class ReadFolder:
    """An adapter in memory, with its probes."""

    artifact: AdapterArtifact
    inspection: Inspection


def read_whole(reader: Reader, found: Found) -> ReadFolder:
    """Read a folder that looks as it did when it was `found`, before and after.

    Raises Unavailable if it does not (nothing is known of it then), AdapterNotFound if it is gone, and what
    Reader.read raises.
    """
    if _stamp_now(found) is None:
        raise AdapterNotFound(found.place.name, "; its folder was removed")
    if _stamp_now(found) != found.stamp:
        raise _changing(found)
    if found.stamp.refused:
        raise AdapterRejected(f"adapter folder {found.place.folder.name!r} {found.stamp.refused}")
    try:
        artifact, inspection = reader.read(found.place.folder)
    except AdapterRejected as error:
        if _stamp_now(found) != found.stamp or Code.FILE_CHANGED in error.metadata.get("codes", ""):
            raise _changing(found) from error
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Unavailable(f"adapter folder {found.place.folder.name!r} cannot be read: {reason}") from error
    if _stamp_now(found) != found.stamp:
        raise _changing(found)
    return ReadFolder(artifact, replace(inspection, sites=()))


def _changing(found: Found) -> Unavailable:
    return Unavailable(
        f"the files of adapter folder {found.place.folder.name!r} are being changed; try again"
    )


def unchanged(found: Found) -> bool:
    """Whether the folder looks as it did when it was found. Blocks."""
    return _stamp_now(found) == found.stamp


def _stamp_now(found: Found) -> Stamp | None:
    try:
        return stamp(found.place.folder, found.root)
    except FileNotFoundError:
        return None
