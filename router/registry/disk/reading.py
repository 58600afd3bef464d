"""Reading folders that may change at any moment: what was read is used only if it was whole and one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from router.engine.base import AdapterArtifact, Engine
from router.errors import AdapterNotFound, AdapterRejected, Unavailable
from router.names import name_from_folder
from router.registry.disk.places import Found, Place, Stamp, stamp_of
from router.registry.format import limits
from router.registry.format.artifact import Inspection, inspect_folder, read_artifact
from router.registry.format.checks import EqualsBase
from router.registry.format.findings import Code, Findings
from router.registry.format.folder import MANIFEST, WEIGHTS, Folder, FolderError, find_layout
from router.registry.format.manifest import Manifest, parse_manifest
from router.registry.format.names import DEFAULT_VERSION, is_version
from router.registry.format.trust import Trust
from router.types import AdapterRef

UNNAMED = "unnamed"
_PASSING = (Code.FOLDER_UNREADABLE, Code.FILE_UNREADABLE, Code.FILE_CHANGED, Code.DIGEST_NOT_LISTED)


class Reader(Protocol):
    """How folders are looked at and read. Both block; they are called in worker threads."""

    @property
    def vets(self) -> bool:
        """Whether nobody may parse anything of a folder before `inspect` found no problem with it."""
        ...

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
        trust: Trust | None = None,
    ) -> None:
        self._engine, self._max_rank, self._trust = engine, max_rank, trust
        self._ignore_fields, self._equals_base = tuple(ignore_fields), equals_base

    @property
    def vets(self) -> bool:
        """See Reader."""
        return self._trust is not None

    def inspect(self, folder: Path) -> Inspection:
        """See Reader."""
        return inspect_folder(
            folder,
            self._engine.info,
            max_rank=self._max_rank,
            ignore_fields=self._ignore_fields,
            equals_base=self._equals_base,
            trust=self._trust,
        )

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        """See Reader."""
        return read_artifact(
            folder,
            self._engine.info,
            max_rank=self._max_rank,
            ignore_fields=self._ignore_fields,
            equals_base=self._equals_base,
            trust=self._trust,
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
    if not unchanged(found):
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


def identity(place: Place, inspection: Inspection | Manifest | None) -> AdapterRef:
    """Name and version: what the manifest says, where it says nothing what the folders are called."""
    said = inspection.name if inspection else ""
    name, version = said, inspection.version if inspection else DEFAULT_VERSION
    if place.version:
        if not said or said == name_from_folder(place.folder.name):
            name = name_from_folder(place.name)
        if version == DEFAULT_VERSION and is_version(place.version):
            version = place.version
    return AdapterRef(name or name_from_folder(place.name) or UNNAMED, version)


class Claims:
    """Folders in the order in which they came; the first one without a problem stands for its version.

    Carried folders stand for nothing while another folder has an adapter of their name, in any version.
    """

    def __init__(self) -> None:
        self._by_folder: dict[Path, Examined] = {}
        self._folders: dict[AdapterRef, list[Path]] = {}
        self._own = Counter[str]()  # folders that are not carried, by name of the adapter
        self._carried: dict[str, Counter[AdapterRef]] = {}  # those that are, by name and version

    def get(self, folder: Path) -> Examined | None:
        """What a folder held when it was last examined."""
        return self._by_folder.get(folder)

    def put(self, examined: Examined) -> tuple[AdapterRef, AdapterRef | None]:
        """Take note of a folder; gives the version it stands for, and the one before if it was another.

        A folder that turned bad stands for what it stood for: bad files cannot say who they are.
        """
        folder = examined.found.place.folder
        before = self._by_folder.get(folder)
        if before is not None and examined.problem:
            examined = replace(examined, ref=before.ref, inspection=before.inspection)
        self._by_folder[folder] = examined
        if before is not None and before.ref == examined.ref:
            return examined.ref, None
        self._folders.setdefault(examined.ref, []).append(folder)
        self._count(examined, 1)
        if before is None:
            return examined.ref, None
        self._unclaim(before)
        return examined.ref, before.ref

    def drop(self, folder: Path) -> AdapterRef | None:
        """A folder is gone; returns the version it stood for."""
        examined = self._by_folder.pop(folder, None)
        if examined is None:
            return None
        self._unclaim(examined)
        return examined.ref

    def _unclaim(self, before: Examined) -> None:
        folders = self._folders[before.ref]
        folders.remove(before.found.place.folder)
        if not folders:
            del self._folders[before.ref]
        self._count(before, -1)

    def _count(self, examined: Examined, by: int) -> None:
        name = examined.ref.name
        if not examined.found.carried:
            self._own[name] += by
            if not self._own[name]:
                del self._own[name]
            return
        versions = self._carried.setdefault(name, Counter())
        versions[examined.ref] += by
        if not versions[examined.ref]:
            del versions[examined.ref]

    def carried(self, name: str) -> tuple[AdapterRef, ...]:
        """The carried versions of an adapter: whether they stand depends on the other folders of its name."""
        return tuple(self._carried.get(name, ()))

    def is_hidden(self, ref: AdapterRef) -> bool:
        """Whether a carried folder has this version and gives way to others of its name."""
        return ref.name in self._own and ref in self._carried.get(ref.name, ())

    def claimants(self, ref: AdapterRef) -> list[Examined]:
        """Who claims a version: first the one that stands for it."""
        found = [self._by_folder[folder] for folder in self._folders.get(ref, ())]
        if ref.name in self._own:
            found = [one for one in found if not one.found.carried]
        return sorted(found, key=lambda e: bool(e.problem))


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
    with ExitStack() as opened:
        folder = opened.enter_context(Folder.open(path))
        nested = find_layout(folder, Findings()).nested
        inner = opened.enter_context(folder.subfolder(nested)) if nested else folder
        return opened.enter_context(inner.file(WEIGHTS)).sha256()


def _changing(found: Found) -> Unavailable:
    return Unavailable(
        f"the files of adapter folder {found.place.folder.name!r} are being changed; try again"
    )


def unchanged(found: Found) -> bool:
    """Whether the folder looks as it did when it was found. Blocks."""
    return _stamp_now(found) == found.stamp


def _stamp_now(found: Found) -> Stamp | None:
    try:
        return stamp_of(found.place.folder, found.root)
    except FileNotFoundError:
        return None
