"""An adapter from its source into an adapters folder: listed, fetched aside, checked as the server checks it,
and moved in whole; or refused, and then nothing of it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from router.errors import AdapterRejected, AlreadyExists, ConfigError, DataLoss, ResourceExhausted
from router.names import (
    DEFAULT_VERSION,
    NAME_RULE,
    VERSION_RULE,
    is_name,
    is_version,
    looks_like_version,
    name_from_folder,
)
from router.registry.folders import FoundFolder, Place, Scanner, identity
from router.registry.format.artifact import Inspection, digest_of_folder
from router.registry.format.folder import CONFIG, MANIFEST, OURS, REPORT, WEIGHTS
from router.registry.format.manifest import Manifest, parse_manifest
from router.registry.format.untrusted import show
from router.sources.source import AdapterSource, Listing, Progress
from router.sources.staging import FILE_NAME, SourceRecord, StagingArea, license_in, staged
from router.sources.transfer import (
    LeftOut,
    Selection,
    choose,
    faults_explained,
    fetch,
)
from router.types import AdapterRef


@dataclass(frozen=True, slots=True)
class NameOverride:
    """How an adapter is to be called, by the user; '' where the user gave none."""

    name: str = ""
    version: str = ""

    def check(self) -> None:
        """Raise ConfigError for what no adapter can be called."""
        if self.name and not is_name(self.name):
            raise ConfigError(f"--name {show(self.name)}: a name is {NAME_RULE}")
        if self.version and not is_version(self.version):
            raise ConfigError(f"--version {show(self.version)}: a version is {VERSION_RULE}")

    def fits(self, ref: AdapterRef) -> bool:
        """Whether the version has this name and number."""
        return self.name in ("", ref.name) and self.version in ("", ref.version)


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """Where a version belongs, and the folder that has it now, if any."""

    ref: AdapterRef
    folder: Path
    present: Path | None


class AdaptersFolder:
    """An adapters folder as it is now."""

    def __init__(self, adapters: Path) -> None:
        self._root = adapters
        self._found = {found: _identity(found) for found in Scanner([adapters]).scan().found.values()}

    def versions(self) -> Iterator[tuple[AdapterRef, Path]]:
        """Every version with its folder."""
        for found, ref in self._found.items():
            yield ref, found.place.folder

    def target(self, ref: AdapterRef, says: Manifest | None) -> TargetFolder:
        """Where this version belongs; `says`: what its own manifest says, None without one.

        Raises ConfigError where the folder's name would have to say what it cannot.
        """
        present = next((path for known, path in self.versions() if known == ref), None)
        if present is not None:
            return TargetFolder(ref, present, present)
        top = self._root / ref.name
        if not _is_adapter(top):
            if says is None and not looks_like_version(ref.version):
                text = f"--version {ref.version}: without an {MANIFEST} a version is written like 1.2.0"
                raise ConfigError(text)
            return TargetFolder(ref, top / ref.version, None)
        if says is None or (says.name, says.version) != (ref.name, ref.version):
            raise ConfigError(
                f"{top} is a version itself, and what comes has no {MANIFEST} that says its own name and "
                f"version: move it to {top}/VERSION first, or say another --name"
            )
        beside = self._root / f"{ref.name}-{ref.version}"
        if beside.exists():
            raise AlreadyExists(f"{beside} is there already, and is not {ref}")
        return TargetFolder(ref, beside, None)


def ref_of(says: Manifest | None, folder: str, source: AdapterSource, wanted: NameOverride) -> AdapterRef:
    """Name and version: what the manifest says, else the user, else the source.

    `folder`: what the manifest's folder is called, which is its name where it says none. Raises ConfigError
    if manifest and user say different things: a manifest that is changed would be another adapter.
    """
    name = says.name if says is not None and says.name != name_from_folder(folder) else ""
    version = says.version if says is not None and says.version != DEFAULT_VERSION else ""
    for option, given, own in (("--name", wanted.name, name), ("--version", wanted.version, version)):
        if given and own and given != own:
            raise ConfigError(
                f"{option} {given}: its {MANIFEST} says {own!r}, and changing that changes its digest"
            )
    found = name or wanted.name or name_from_folder(source.name)
    if not found:
        raise ConfigError(f"{show(source.name)} cannot be made a name: say --name")
    return AdapterRef(found, version or wanted.version or source.version or DEFAULT_VERSION)


def _identity(found: FoundFolder) -> AdapterRef:
    return identity(
        found.place, None if found.refused else _manifest(found.place.folder, found.place.folder.name)
    )


def _is_adapter(top: Path) -> bool:
    return any((top / name).exists() for name in (MANIFEST, CONFIG, WEIGHTS))


# -- adding one


Validate = Callable[[Path], Inspection]


class AddOutcome(StrEnum):
    """What became of the adapters folder."""

    ADDED = "added"
    REPLACED = "replaced"
    PRESENT = "present"  # it was there already, byte for byte: nothing was changed
    REPORTED = "reported"  # the same, and its report card came


@dataclass(frozen=True, slots=True)
class AddRequest:
    """What the user asked for."""

    source: AdapterSource
    adapters: Path
    most_bytes: int
    wanted: NameOverride = NameOverride()
    digest: str = ""  # hex: the only one that is taken
    report: bool = False
    force: bool = False
    vetted: bool = False  # signatures or a list are asked for: nothing is parsed before they are looked at


@dataclass(frozen=True, slots=True)
class Added:
    """What was done. `validation` is None where it was known without fetching anything."""

    outcome: AddOutcome
    ref: AdapterRef
    folder: Path
    origin: SourceRecord
    left: tuple[LeftOut, ...] = ()
    validation: Inspection | None = None


def add(request: AddRequest, validate: Validate, progress: Progress) -> Added:
    """Bring an adapter in, or raise a RouterError that says what to do and leave the folder as it was."""
    request.wanted.check()
    request = replace(request, adapters=Path(os.path.realpath(request.adapters)))
    with faults_explained():
        listing = request.source.listing()
    choice = choose(listing, report=request.report, most=request.most_bytes)
    if (known := _known(request, listing, choice)) is not None:
        return known
    with faults_explained(), staged(request.adapters) as place:
        sums = _fetch(request, place.files, choice, progress)
        if not request.source.unchanged(listing):
            raise DataLoss(
                f"{request.source.reference} changed while it was read; run the same command again"
            )
        return _take(request, place, listing, choice, sums, validate)


def _known(request: AddRequest, listing: Listing, choice: Selection) -> Added | None:
    """The same files of the same source, if they are here and as they came."""
    for ref, folder in AdaptersFolder(request.adapters).versions():
        origin = SourceRecord.read(folder)
        if origin is None or not request.wanted.fits(ref) or origin.pin != listing.pin:
            continue
        same = origin.subfolder == request.source.subfolder and _repo(origin.source) == _repo(
            request.source.reference
        )
        whole = origin.files.keys() >= {file.name for file in choice.taken}
        if same and whole and request.digest in ("", origin.digest) and _digest(folder) == origin.digest:
            return Added(AddOutcome.PRESENT, ref, folder, origin, choice.left)
    return None


def _repo(reference: str) -> str:
    """A source without its revision: the commit that it led to is compared."""
    return reference.partition("@")[0] if reference.startswith("hub:") else reference


def _fetch(request: AddRequest, folder: Path, choice: Selection, progress: Progress) -> dict[str, str]:
    """All files, the manifest first: what it says may make the rest needless. Gives their sha256."""
    free = shutil.disk_usage(folder).free
    if choice.bytes > free:
        raise ResourceExhausted(
            f"{request.adapters}: {choice.bytes} bytes are to come, and {free} are free: make room"
        )
    sums = {file.name: fetch(request.source, file, folder, progress) for file in choice.taken[:1]}
    if not request.vetted:
        _check_early(request, _manifest(folder, folder.name), folder.name, choice)
    return sums | {file.name: fetch(request.source, file, folder, progress) for file in choice.taken[1:]}


def _check_early(request: AddRequest, says: Manifest | None, folder: str, choice: Selection) -> None:
    """Raise now what would be raised once the weights are here."""
    target = AdaptersFolder(request.adapters).target(
        ref_of(says, folder, request.source, request.wanted), says
    )
    if target.present is None or request.force:
        return
    coming = {file.name: file.size for file in choice.taken if file.name in OURS}
    present = {path.name: path.stat().st_size for path in target.present.iterdir() if path.name in OURS}
    if coming != present:
        raise _other(target)


def _take(
    request: AddRequest,
    place: StagingArea,
    listing: Listing,
    choice: Selection,
    sums: dict[str, str],
    validate: Validate,
) -> Added:
    digest = digest_of_folder(place.files)
    if request.digest and digest != request.digest:
        raise DataLoss(
            f"its digest is sha256:{digest}, --digest says sha256:{request.digest}; nothing was added"
        )
    validation = validate(place.files)
    if not validation.ok:
        codes = ",".join(sorted({f.code for f in validation.refusals}))
        raise AdapterRejected(f"{request.source.reference} is refused: {validation.error}", codes=codes)
    says = validation.manifest if MANIFEST in sums else None
    target = AdaptersFolder(request.adapters).target(
        ref_of(says, place.files.name, request.source, request.wanted), says
    )
    origin = SourceRecord(
        request.source.reference, digest, listing.pin, request.source.subfolder, license_in(place.files), sums
    )
    if target.present is not None and _digest(target.present) == digest:
        outcome = _add_report(place.files, target.present, origin)
        there = SourceRecord.read(target.present) or origin
        return Added(outcome, target.ref, target.present, there, choice.left, validation)
    if target.present is not None and not request.force:
        raise _other(target)
    _check_identity(target, place.files, request.adapters)
    origin.write(place.files)
    place.publish(target.folder, replace=target.present is not None)
    outcome = AddOutcome.ADDED if target.present is None else AddOutcome.REPLACED
    return Added(outcome, target.ref, target.folder, origin, choice.left, validation)


def _add_report(files: Path, present: Path, origin: SourceRecord) -> AddOutcome:
    """The report card, where it was asked for, beside an adapter that came without one."""
    if not (files / REPORT).is_file() or os.path.lexists(present / REPORT):
        return AddOutcome.PRESENT
    origin.write(files)
    for name in (REPORT, FILE_NAME):
        (files / name).rename(present / name)
    return AddOutcome.REPORTED


def _check_identity(target: TargetFolder, files: Path, adapters: Path) -> None:
    """Raise ConfigError if these files in that folder would be called otherwise."""
    folder = target.folder
    inside = folder.parent != adapters
    place = Place(folder, folder.parent.name, folder.name) if inside else Place(folder, folder.name)
    would = identity(place, _manifest(files, folder.name))
    if would != target.ref:
        raise ConfigError(
            f"in {folder} it would be {would}, not {target.ref}, since it has no {MANIFEST} that says so: "
            f"remove that folder first, or say another --version"
        )


def _manifest(folder: Path, called_like: str) -> Manifest | None:
    path = folder / MANIFEST
    return parse_manifest(path.read_bytes(), called_like)[0] if path.is_file() else None


def _digest(folder: Path) -> str:
    """Of the adapter in a folder; '' if it has none."""
    try:
        return digest_of_folder(folder)
    except AdapterRejected:
        return ""


def _other(target: TargetFolder) -> AlreadyExists:
    known = SourceRecord.read(target.present) if target.present is not None else None
    whence = f" (from {known.source})" if known is not None else ""
    return AlreadyExists(
        f"{target.ref} is there already with other contents, in {target.present}{whence}: --version gives "
        "this one another version, --force replaces the other"
    )
