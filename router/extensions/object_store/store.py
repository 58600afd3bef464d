"""Object stores, and all else that `fsspec` has a driver for: one adapter, or all under a prefix (`s3://BUCKET/`).

A store has no commits: what tells one state from another is what it says of each file (ETag, date, size),
looked at before and after. Under a prefix, adapter folders are found by their names as the registry finds
them. Address and credentials are the driver's own (AWS_…, FSSPEC_S3_ENDPOINT_URL).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from router.errors import (
    ConfigError,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RouterError,
    install_extra,
)
from router.names import looks_like_version
from router.registry.folders import is_ignored
from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS
from router.registry.format.untrusted import show
from router.sources.source import FolderSource, Listing, Passing, RemoteFile, state_of, wrong_name
from router.sources.store import Remote, RemoteFolder
from router.sources.transfer import TAKEN

BLOCK = 4 << 20
MOST_SIZE = 1 << 50
MOST_FILES = 10_000
NO_FOLDERS = ("http", "https", "data", "zip", "tar", "reference", "github", "git", "hf")
PACKAGES = {
    "s3": install_extra("s3"),
    "s3a": install_extra("s3"),
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
} | dict.fromkeys(("az", "abfs", "abfss", "adl"), "pip install adlfs")
MARKS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
    "generation",
    "md5Hash",
)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
R = TypeVar("R")


class Objects(FolderSource):
    """The files under one prefix. See Source."""

    def __init__(self, url: str, subfolder: str = "") -> None:
        check_url(url)
        super().__init__(url, subfolder)
        self._files, self._path = open_store(self.reference.rstrip("/"))

    def listing(self) -> Listing:
        """See Source."""
        files, folders, marks = [], [], {}
        for entry in call_driver(self.reference, self._entries):
            full = str(entry.get("name", ""))
            name = full.removeprefix(self._path).lstrip("/") if full.startswith(self._path) else full
            if not name.rstrip("/"):
                continue  # stores may have an object that is called like the folder
            if entry.get("type") == "directory":
                folders.append(name.rstrip("/"))
                continue
            size = entry.get("size")
            if type(size) is not int or not 0 <= size <= MOST_SIZE:
                raise DataLoss(f"the store does not say how large {show(name)} is; nothing was added")
            files.append(RemoteFile(name, size, link=bool(entry.get("islink"))))
            marks[name] = mark_of(entry, size)
        return Listing(tuple(files), tuple(folders), state=state_of(marks))

    def _entries(self) -> list[Mapping[str, Any]]:
        self._files.invalidate_cache()
        entries = self._files.ls(self._path, detail=True)
        if len(entries) > MOST_FILES:
            raise DataLoss(f"{self.reference} holds {len(entries)} files: name the folder of the adapter")
        return list(entries)

    def read(self, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        """See Source."""
        return read_blocks(self._files, self.reference, f"{self._path}/{file.name}", file, start)


# -- what one adapter and a whole store of them have in common


def check_url(url: str) -> None:
    """Raise ConfigError for what is no store of folders, and for a secret, which would be recorded."""
    scheme = url.partition("://")[0]
    if scheme in NO_FOLDERS or "::" in url:
        raise ConfigError(
            f"{show(url)[1:-1]}: adapters come from hub:ORG/NAME, a folder, or a store that lists folders (s3://)"
        )
    if ":" in url.partition("://")[2].partition("/")[0].rpartition("@")[0]:
        raise ConfigError(f"{scheme}://: leave secrets out of the source, it is recorded")


def open_store(url: str) -> tuple[Any, str]:
    """The driver and the path in it. Raises ConfigError, FailedPrecondition."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except ImportError:
        package = PACKAGES.get(scheme, "install the fsspec driver for it")
        raise ConfigError(f"{scheme}:// needs a driver that is not installed: {package}") from None
    except ValueError as error:
        raise ConfigError(f"{show(url)[1:-1]}: {error}") from None
    except Exception as error:  # drivers that connect at once
        text = f"{scheme}:// cannot be opened: {type(error).__name__}: {show(str(error), 200)[1:-1]}"
        raise FailedPrecondition(text) from error
    return files, str(path).rstrip("/")


def call_driver(reference: str, ask: Callable[[], R]) -> R:
    """The driver's answer; its errors as ours. `reference`: what is read."""
    try:
        return ask()
    except RouterError:
        raise
    except FileNotFoundError:
        raise NotFound("folder", reference, ": nothing is there, or you may not see it") from None
    except PermissionError:
        raise PermissionDenied(f"{reference} may not be read with these credentials") from None
    except Exception as error:  # each driver has errors of its own
        kind = type(error).__name__
        if kind in NO_CREDENTIALS:
            text = f"{reference} wants credentials: AWS_ACCESS_KEY_ID and the like, or FSSPEC_S3_ANON=true"
            raise PermissionDenied(text) from None
        raise Passing(f"{reference} cannot be read: {kind}: {show(str(error), 200)[1:-1]}") from error


def mark_of(entry: Mapping[str, Any], size: int) -> str:
    """What tells a file from what it was, as far as the store says."""
    return f"{size} {[str(entry.get(key, '')) for key in MARKS]}"


def read_blocks(
    files: Any, reference: str, path: str, file: RemoteFile, start: int
) -> Generator[bytes, None, None]:
    """The bytes of `path` from `start` on, a block for each request. Raises DataLoss for another number."""
    while start < file.size:
        end = min(start + BLOCK, file.size)
        block: bytes = call_driver(reference, partial(files.cat_file, path, start=start, end=end))
        if len(block) != end - start:
            text = f"{file.name}: {file.size} bytes were announced, and {len(block)} came for {end - start}"
            raise DataLoss(f"{text}; nothing was added")
        yield block
        start = end


MOST_OBJECTS = 500_000  # under one prefix; a listing is held in memory
MOST_FOLDER_BYTES = 200  # of a folder's name; file systems end at 255
DATES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
MD5 = re.compile(r"[0-9a-f]{32}(-[0-9]{1,5})?")  # of S3; with a number: of the parts it came in


class ObjectStore:
    """The folders under a prefix. All of it blocks, and raises Passing or a RouterError."""

    def __init__(self, url: str) -> None:
        check_url(url)
        self.reference = f"{url.rstrip('/')}/"
        self._files, self._path = open_store(url.rstrip("/"))

    def listing(self) -> dict[str, RemoteFolder]:
        """All adapter folders by place. Object stores are listed once for each thousand objects, others once
        for each folder. Names that no honest store has are passed over. Raises ResourceExhausted for more
        than MOST_OBJECTS.
        """
        inside: dict[str, list[Remote]] = {}
        for count, (name, entry) in enumerate(call_driver(self.reference, self._entries), start=1):
            if count > MOST_OBJECTS:
                raise ResourceExhausted(
                    f"{self.reference} holds more than {MOST_OBJECTS} objects: "
                    "name the prefix of adapters alone"
                )
            folder, _, file = name.rpartition("/")
            if file in TAKEN and (known := _remote(file, entry)) is not None:
                inside.setdefault(folder, []).append(known)
        return {place: RemoteFolder.of(place, inside[place]) for place in _places(inside)}

    def folder(self, place: str) -> RemoteFolder:
        """One of them as it is now; without files if it is gone."""
        path = f"{self._path}/{place}"
        try:
            entries = call_driver(f"{self.reference}{place}/", lambda: self._ls(path))
        except NotFound:
            return RemoteFolder.of(place, ())
        named = ((_below(path, entry), entry) for entry in entries if entry.get("type") != "directory")
        found = (_remote(name, entry) for name, entry in named if name in TAKEN)
        return RemoteFolder.of(place, (file for file in found if file is not None))

    def _entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        from fsspec.asyn import AsyncFileSystem

        self._files.invalidate_cache()
        if not isinstance(self._files, AsyncFileSystem):
            return list(self._walked())
        found = self._files.find(self._path, detail=True).values()
        self._files.invalidate_cache()  # the driver keeps what it lists
        return [(_below(self._path, entry), entry) for entry in found]

    def _walked(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Folder by folder, two levels deep."""
        folders = [self._path]
        for depth in range(3):
            inner: list[str] = []
            for folder in folders:
                for entry in self._ls_if_there(folder, bool(depth)):
                    name = _below(self._path, entry)
                    if entry.get("type") == "directory":
                        inner += [] if is_ignored(name.rpartition("/")[2]) else [f"{self._path}/{name}"]
                    else:
                        yield name, entry
            folders = inner

    def _ls_if_there(self, path: str, may_be_gone: bool) -> list[Mapping[str, Any]]:
        try:
            return self._ls(path)
        except FileNotFoundError:
            if not may_be_gone:
                raise
            return []

    def _ls(self, path: str) -> list[Mapping[str, Any]]:
        self._files.invalidate_cache(path)
        return list(self._files.ls(path, detail=True))

    def read(self, place: str, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        """The bytes of a file from `start` on."""
        return read_blocks(self._files, self.reference, f"{self._path}/{place}/{file.name}", file, start)


def _below(path: str, entry: Mapping[str, Any]) -> str:
    full = str(entry.get("name", ""))
    return full[len(path) + 1 :].rstrip("/") if full.startswith(f"{path}/") else ""


def _remote(name: str, entry: Mapping[str, Any]) -> Remote | None:
    size = entry.get("size")
    if type(size) is not int or not 0 <= size <= MOST_SIZE:
        return None
    link = bool(entry.get("islink")) or entry.get("type") not in (None, "file")
    return Remote(name, size, mark_of(entry, size), _content(entry, size), _modified(entry), link)


def _content(entry: Mapping[str, Any], size: int) -> str:
    etag = str(entry.get("ETag", "")).strip('"').lower()
    if MD5.fullmatch(etag):
        return f"{size} {etag}"
    return f"{size} {entry['md5Hash']}" if entry.get("md5Hash") else ""


def _modified(entry: Mapping[str, Any]) -> float | None:
    """The latest of them: copies may keep the date of what they are of."""
    return max(filter(None, (_date(entry.get(key)) for key in DATES)), default=None)


def _date(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def _places(inside: Mapping[str, list[Remote]]) -> Iterator[str]:
    """Which of these folders are adapters: as `registry.disk.places` does it with folders of a disk."""
    names = {folder: {file.name for file in files} for folder, files in inside.items()}
    for folder in sorted(names):
        top, _, version = folder.partition("/")
        parts = (top, version) if version else (top,)
        if not top or "/" in version or not all(map(_may_be_a_folder, parts)):
            continue
        if not names[folder] & {MANIFEST, CONFIG, WEIGHTS}:
            continue
        if not version or _is_version(top, version, names):
            yield folder


def _is_version(top: str, version: str, names: Mapping[str, set[str]]) -> bool:
    beside = names.get(top, set()) & {MANIFEST, CONFIG, WEIGHTS}
    return not beside and (looks_like_version(version) or MANIFEST in names[f"{top}/{version}"])


def _may_be_a_folder(name: str) -> bool:
    long = len(name.encode("utf-8", "surrogatepass")) > MOST_FOLDER_BYTES
    return not (long or is_ignored(name) or wrong_name(name))
