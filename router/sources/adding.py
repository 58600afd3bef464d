"""An adapter from its source into an adapters folder: listed, fetched aside, checked as the server checks it,
and moved in whole; or refused, and then nothing of it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from router.errors import AdapterRejected, AlreadyExists, ConfigError, DataLoss, ResourceExhausted
from router.registry.disk.places import Place
from router.registry.disk.reading import identity
from router.registry.format.artifact import Validation, digest_of_folder
from router.registry.format.folder import MANIFEST, OURS, REPORT
from router.registry.format.manifest import Manifest, parse_manifest
from router.sources.adapters_folder import AdaptersFolder, NameOverride, Spot, called
from router.sources.choice import Choice, Left, choose
from router.sources.origin import FILE_NAME, Origin, license_in
from router.sources.source import Listing, Source
from router.sources.staging import Staging, staged
from router.sources.transfer import Pause, Progress, Transfer, disk_told, patiently
from router.types import AdapterRef

Validate = Callable[[Path], Validation]


class Outcome(StrEnum):
    """What became of the adapters folder."""

    ADDED = "added"
    REPLACED = "replaced"
    PRESENT = "present"  # it was there already, byte for byte: nothing was changed
    REPORTED = "reported"  # the same, and its report card came


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said."""

    source: Source
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

    outcome: Outcome
    ref: AdapterRef
    folder: Path
    origin: Origin
    left: tuple[Left, ...] = ()
    validation: Validation | None = None


def add(wish: Wish, validate: Validate, progress: Progress, pause: Pause) -> Added:
    """Bring an adapter in. What came stays for the next attempt, unless it is refused.

    Raises a RouterError that says what to do; the adapters folder then is as it was.
    """
    wish.wanted.check()
    wish = replace(wish, adapters=Path(os.path.realpath(wish.adapters)))
    listing = patiently(wish.source.listing, pause)
    choice = choose(listing, report=wish.report, most=wish.most_bytes)
    if (known := _known(wish, listing, choice)) is not None:
        return known
    key = f"{wish.source.reference}\0{wish.source.subfolder}\0{listing.pin}"
    with disk_told(wish.adapters), staged(wish.adapters, key) as place:
        try:
            transfer = Transfer(wish.source, place.files, progress, pause)
            sums = _fetch(wish, transfer, choice)
            if not patiently(lambda: wish.source.unchanged(listing), pause):
                raise DataLoss(
                    f"{wish.source.reference} changed while it was read; run the same command again"
                )
            return _take(wish, place, listing, choice, sums, validate)
        except (DataLoss, AdapterRejected):
            place.drop()
            raise


def _known(wish: Wish, listing: Listing, choice: Choice) -> Added | None:
    """The same files of the same source, if they are here and as they came."""
    for ref, folder in AdaptersFolder(wish.adapters).versions():
        origin = Origin.read(folder)
        if origin is None or not wish.wanted.fits(ref) or origin.pin != listing.pin:
            continue
        same = origin.subfolder == wish.source.subfolder and _repo(origin.source) == _repo(
            wish.source.reference
        )
        whole = origin.files.keys() >= {file.name for file in choice.taken}
        if same and whole and wish.digest in ("", origin.digest) and _digest(folder) == origin.digest:
            return Added(Outcome.PRESENT, ref, folder, origin, choice.left)
    return None


def _repo(said: str) -> str:
    """A source without its revision: the commit that it led to is compared."""
    return said.partition("@")[0] if said.startswith("hub:") else said


def _fetch(wish: Wish, transfer: Transfer, choice: Choice) -> dict[str, str]:
    """All files, the manifest first: what it says may make the rest needless. Gives their sha256."""
    _check_room(transfer.folder, choice)
    sums = {}
    manifest = [file for file in choice.taken if file.name == MANIFEST]
    for file in manifest:
        sums[file.name] = transfer.fetch(file)
    if not wish.vetted:
        _check_early(wish, _manifest(transfer.folder, transfer.folder.name), transfer.folder.name, choice)
    for file in choice.taken:
        if file not in manifest:
            sums[file.name] = transfer.fetch(file)
    for stray in transfer.folder.iterdir():  # of an attempt with other options
        if stray.name not in sums:
            stray.unlink()
    return sums


def _check_room(folder: Path, choice: Choice) -> None:
    here = sum(path.stat().st_size for path in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if choice.bytes - here > free:
        text = (
            f"{folder.parent.parent}: {choice.bytes - here} bytes are to come, and {free} are free: make room"
        )
        raise ResourceExhausted(text)


def _check_early(wish: Wish, says: Manifest | None, folder: str, choice: Choice) -> None:
    """Raise now what would be raised once the weights are here."""
    spot = AdaptersFolder(wish.adapters).spot(called(says, folder, wish.source, wish.wanted), says)
    if spot.present is None or wish.force:
        return
    coming = {file.name: file.size for file in choice.taken if file.name in OURS}
    present = {path.name: path.stat().st_size for path in spot.present.iterdir() if path.name in OURS}
    if coming != present:
        raise _other(spot)


def _take(
    wish: Wish, place: Staging, listing: Listing, choice: Choice, sums: dict[str, str], validate: Validate
) -> Added:
    digest = digest_of_folder(place.files)
    if wish.digest and digest != wish.digest:
        raise DataLoss(
            f"its digest is sha256:{digest}, --digest says sha256:{wish.digest}; nothing was added"
        )
    validation = validate(place.files)
    if not validation.ok:
        codes = ",".join(sorted({f.code for f in validation.inspection.refusals}))
        raise AdapterRejected(
            f"{wish.source.reference} is refused: {validation.inspection.error}", codes=codes
        )
    says = validation.inspection.manifest if MANIFEST in sums else None
    spot = AdaptersFolder(wish.adapters).spot(called(says, place.files.name, wish.source, wish.wanted), says)
    origin = Origin(
        wish.source.reference, digest, listing.pin, wish.source.subfolder, license_in(place.files), sums
    )
    if spot.present is not None and _digest(spot.present) == digest:
        outcome = _add_report(place.files, spot.present, origin)
        place.drop()
        there = Origin.read(spot.present) or origin
        return Added(outcome, spot.ref, spot.present, there, choice.left, validation)
    if spot.present is not None and not wish.force:
        raise _other(spot)
    _check_identity(spot, place.files, wish.adapters)
    origin.write(place.files)
    place.publish(spot.folder, replace=spot.present is not None)
    place.drop()
    outcome = Outcome.ADDED if spot.present is None else Outcome.REPLACED
    return Added(outcome, spot.ref, spot.folder, origin, choice.left, validation)


def _add_report(files: Path, present: Path, origin: Origin) -> Outcome:
    """The report card, where it was asked for, beside an adapter that came without one."""
    if not (files / REPORT).is_file() or os.path.lexists(present / REPORT):
        return Outcome.PRESENT
    origin.write(files)
    for name in (REPORT, FILE_NAME):
        (files / name).rename(present / name)
    return Outcome.REPORTED


def _check_identity(spot: Spot, files: Path, adapters: Path) -> None:
    """Raise ConfigError if these files in that folder would be called otherwise."""
    folder = spot.folder
    inside = folder.parent != adapters
    place = Place(folder, folder.parent.name, folder.name) if inside else Place(folder, folder.name)
    would = identity(place, _manifest(files, folder.name) or Manifest(name="", version="0"))
    if would != spot.ref:
        raise ConfigError(
            f"in {folder} it would be {would}, not {spot.ref}, since it has no {MANIFEST} that says so: "
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


def _other(spot: Spot) -> AlreadyExists:
    known = Origin.read(spot.present) if spot.present is not None else None
    whence = f" (from {known.source})" if known is not None else ""
    return AlreadyExists(
        f"{spot.ref} is there already with other contents, in {spot.present}{whence}: --version gives "
        "this one another version, --force replaces the other"
    )
