"""Where adapters come from: what a user writes for a source, and what all sources have in common.

Nothing that a source announces is believed: sizes are bounds, and bytes are hashed when they are here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Protocol

from router.errors import AdapterRejected, ConfigError, DataLoss
from router.names import looks_like_version
from router.registry.format.folder import Folder, FolderError
from router.registry.format.untrusted import show

HASH_BYTES = 1 << 20
MOST_NAME_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its source announces it."""

    name: str  # relative to the adapter's folder
    size: int
    sha256: str = ""  # hex; '' where the source has none
    link: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has, at one moment. Raises AdapterRejected for names that no honest source has."""

    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...] = ()  # known to be there, not looked into
    pin: str = ""  # what these very files are known by: a commit, or a value that changes when a file does

    def __post_init__(self) -> None:
        names = [*(file.name for file in self.files), *self.folders]
        for name in names:
            if problem := wrong_name(name):
                raise AdapterRejected(f"the source lists a file called {show(name)}, which {problem}")
        if len(set(names)) < len(names):
            raise AdapterRejected("the source lists the same file twice")


Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many of its bytes are here, and how many it has."""


class AdapterSource(Protocol):
    """Where an adapter comes from. All of it blocks, and raises an OSError or a RouterError."""

    @property
    def reference(self) -> str:
        """The source as it is recorded, and as `adapters add` takes it."""
        ...

    @property
    def subfolder(self) -> str:
        """The folder in it, where `reference` does not name it already."""
        ...

    @property
    def name(self) -> str:
        """What the adapter is called where its manifest does not say; '' if nothing is known."""
        ...

    @property
    def version(self) -> str:
        """The same for its version."""
        ...

    def listing(self) -> Listing:
        """What is there now."""
        ...

    def fetch(self, file: RemoteFile, path: Path, progress: Progress) -> None:
        """Write a file of the listing to `path`, and tell `progress`, which raises DataLoss where more comes
        than was announced.
        """
        ...

    def unchanged(self, listing: Listing) -> bool:
        """Whether what was fetched since is of one moment."""
        ...


class FolderSource:
    """Base of an AdapterSource that is a folder at one address, without commits. A subclass writes `listing`,
    whose `pin` changes when a file does, and `read`.

    `FolderSource("SCHEME:ADDRESS", "SUBFOLDER")` has the reference SCHEME:ADDRESS/SUBFOLDER/. It is recorded,
    so it must have no secret. Name and version are its last parts.
    """

    subfolder = ""  # the reference names it

    def __init__(self, text: str, subfolder: str = "") -> None:
        self.reference = f"{text.rstrip('/')}/{subfolder}".rstrip("/") + "/"

    @property
    def address(self) -> str:
        """The reference without its SCHEME:."""
        return self.reference if self.reference.startswith("/") else self.reference.partition(":")[2]

    @property
    def name(self) -> str:
        """The last part of the address, or the one before it where that is a version."""
        before, last = self._last()
        return before if before and self.version else last

    @property
    def version(self) -> str:
        """The last part of the address where that is a version, else ''."""
        last = self._last()[1]
        return last if looks_like_version(last) else ""

    def listing(self) -> Listing:
        """See AdapterSource."""
        raise NotImplementedError(f"{type(self).__name__} has no method listing(self)")

    def read(self, file: RemoteFile) -> Iterator[bytes]:
        """The bytes of a file, in blocks."""
        raise NotImplementedError(f"{type(self).__name__} has no method read(self, file)")

    def fetch(self, file: RemoteFile, path: Path, progress: Progress) -> None:
        """See AdapterSource."""
        done = 0
        with path.open("wb") as out:
            for block in self.read(file):
                done += len(block)
                progress(file.name, done, file.size)
                out.write(block)

    def unchanged(self, listing: Listing) -> bool:
        """Lists again and compares."""
        return self.listing().pin == listing.pin

    def _last(self) -> tuple[str, str]:
        before, _, last = self.address.rstrip("/").rpartition("/")
        return before.rpartition("/")[2], last


def wrong_name(name: str) -> str:
    """Why no file may be called so; '' if one may."""
    parts = name.split("/")
    if not name or len(name.encode("utf-8", "surrogatepass")) > MOST_NAME_BYTES:
        return "is empty or too long"
    if name.startswith("/") or (len(name) > 1 and name[1] == ":") or {"", ".", ".."} & set(parts):
        return "leads out of the folder"
    if "\\" in name or not name.isprintable():
        return "has characters that no file of an adapter has"
    return ""


def state_of(files: dict[str, str]) -> str:
    """One value for what tells files apart from what they were."""
    digest = hashlib.sha256()
    for name, mark in sorted(files.items()):
        digest.update(f"{name}\0{mark}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


# -- a folder on this machine, read as the server reads adapter folders


class LocalFolder(FolderSource):
    """See AdapterSource."""

    def __init__(self, path: Path, subfolder: str = "") -> None:
        self._path = (path / subfolder).absolute()
        self.reference = str(self._path)

    def listing(self) -> Listing:
        """See AdapterSource."""
        try:
            with Folder.open(self._path) as folder:
                entries = {name: at for name in sorted(folder.names()) if (at := folder.stat(name))}
        except FolderError as error:
            raise AdapterRejected(f"{self._path}: {error.message}") from None
        folders = tuple(name for name, at in entries.items() if S_ISDIR(at.st_mode))
        files = [
            RemoteFile(name, at.st_size, link=not S_ISREG(at.st_mode))
            for name, at in entries.items()
            if name not in folders
        ]
        marks = {name: f"{at.st_size} {at.st_mtime_ns} {at.st_ino}" for name, at in entries.items()}
        return Listing(tuple(files), folders, pin=state_of(marks))

    def read(self, file: RemoteFile) -> Iterator[bytes]:
        """See FolderSource."""
        try:
            with Folder.open(self._path) as folder, folder.file(file.name) as opened:
                if opened.size != file.size:
                    raise DataLoss(f"{file.name} changed while it was read; run the same command again")
                with open(opened.descriptor, "rb", closefd=False) as stream:
                    while block := stream.read(HASH_BYTES):
                        yield block
        except FolderError as error:
            raise AdapterRejected(f"{self._path}: {error.where}: {error.message}") from None


# -- what a user writes: a folder, or SCHEME:TEXT, which a plugin knows (`hub:ORG/NAME`)


SCHEME = re.compile(r"([a-z0-9][a-z0-9_+.-]+):")
FILE = "file://"
ANY = "*"  # every SCHEME:// that is not there by its name
WEB = "https://huggingface.co/"
Make = Callable[[str, str], AdapterSource]


def source_of(
    specifier: str, subfolder: str = "", sources: Mapping[str, Make] | None = None
) -> AdapterSource:
    """The source that is meant. `sources`: those of plugins by scheme.

    Raises ConfigError; nothing is asked for yet.
    """
    found = sources or {}
    inside = subfolder.rstrip("/")
    if inside and (problem := wrong_name(inside)):
        raise ConfigError(f"--subfolder {show(subfolder)} {problem}")
    scheme = named[1] if (named := SCHEME.match(specifier)) else ""
    if scheme in found and scheme != "file":
        return found[scheme](specifier, inside)
    if specifier.startswith(WEB) and "hub" in found:
        repo = "/".join(specifier.removeprefix(WEB).split("/")[:2])
        raise ConfigError(f"{show(specifier)[1:-1]} is a page: say hub:{show(repo)[1:-1]}")
    if "://" in specifier and not specifier.startswith(FILE):
        if ANY not in found:
            known = ", ".join(f"{name}:" for name in sorted(found)) or "none"
            raise ConfigError(f"{scheme}:// is no source of adapters here; plugins have {known}")
        return found[ANY](specifier, inside)
    path = Path(specifier.removeprefix(FILE)).expanduser()
    if not path.is_dir():
        short = specifier.count("/") == 1 and not specifier.startswith(("/", "."))
        hint = f"; hub:{specifier} is one on the hub" if short and "hub" in found else ""
        raise ConfigError(f"{show(specifier)[1:-1]} is no folder here{hint}")
    return LocalFolder(path, inside)
