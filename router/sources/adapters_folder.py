"""Which versions an adapters folder has, and where another one stands: `NAME/VERSION`, or beside a folder
that is a version itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from router.errors import AlreadyExists, ConfigError
from router.names import name_from_folder
from router.registry.disk.places import Found, Scanner
from router.registry.disk.reading import identity, sketch
from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS
from router.registry.format.manifest import Manifest
from router.registry.format.names import (
    DEFAULT_VERSION,
    NAME_RULE,
    VERSION_RULE,
    is_name,
    is_version,
    looks_like_version,
)
from router.registry.format.text import show
from router.sources.source import Source
from router.types import AdapterRef


@dataclass(frozen=True, slots=True)
class NameOverride:
    """How an adapter is to be called, by the user; '' where nothing was said."""

    name: str = ""
    version: str = ""

    def check(self) -> None:
        """Raise ConfigError for what no adapter can be called."""
        if self.name and not is_name(self.name):
            raise ConfigError(f"--name {show(self.name)}: a name is {NAME_RULE}")
        if self.version and not is_version(self.version):
            raise ConfigError(f"--version {show(self.version)}: a version is {VERSION_RULE}")

    def fits(self, ref: AdapterRef) -> bool:
        """Whether this is what was said."""
        return self.name in ("", ref.name) and self.version in ("", ref.version)


@dataclass(frozen=True, slots=True)
class Spot:
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

    def spot(self, ref: AdapterRef, says: Manifest | None) -> Spot:
        """Where this version belongs; `says`: what its own manifest says, None without one.

        Raises ConfigError where the folder's name would have to say what it cannot.
        """
        present = next((path for known, path in self.versions() if known == ref), None)
        if present is not None:
            return Spot(ref, present, present)
        top = self._root / ref.name
        if not _is_adapter(top):
            if says is None and not looks_like_version(ref.version):
                text = f"--version {ref.version}: without an {MANIFEST} a version is written like 1.2.0"
                raise ConfigError(text)
            return Spot(ref, top / ref.version, None)
        if says is None or (says.name, says.version) != (ref.name, ref.version):
            raise ConfigError(
                f"{top} is a version itself, and what comes has no {MANIFEST} that says its own name and "
                f"version: move it to {top}/VERSION first, or say another --name"
            )
        beside = self._root / f"{ref.name}-{ref.version}"
        if beside.exists():
            raise AlreadyExists(f"{beside} is there already, and is not {ref}")
        return Spot(ref, beside, None)


def called(says: Manifest | None, folder: str, source: Source, wanted: NameOverride) -> AdapterRef:
    """Name and version: what the manifest says, else the user, else the source.

    `folder`: what the manifest's folder is called, which is its name where it says none. Raises ConfigError
    if manifest and user say different things: a manifest that is changed would be another adapter.
    """
    name = says.name if says is not None and says.name != name_from_folder(folder) else ""
    version = says.version if says is not None and says.version != DEFAULT_VERSION else ""
    for option, said, own in (("--name", wanted.name, name), ("--version", wanted.version, version)):
        if said and own and said != own:
            raise ConfigError(
                f"{option} {said}: its {MANIFEST} says {own!r}, and changing that changes its digest"
            )
    found = name or wanted.name or name_from_folder(source.name)
    if not found:
        raise ConfigError(f"{show(source.name)} cannot be made a name: say --name")
    return AdapterRef(found, version or wanted.version or source.version or DEFAULT_VERSION)


def _identity(found: Found) -> AdapterRef:
    seen = sketch(found)
    return seen.ref if seen is not None else identity(found.place, None)


def _is_adapter(top: Path) -> bool:
    return any((top / name).exists() for name in (MANIFEST, CONFIG, WEIGHTS))
