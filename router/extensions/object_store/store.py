"""What an object store has under one prefix: adapter folders, found by their names as the registry finds
them, and what the store says of their files.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from datetime import datetime
from typing import Any

from router.errors import NotFound, ResourceExhausted
from router.extensions.object_store.objects import (
    MOST_SIZE,
    asked,
    check_url,
    mark_of,
    open_store,
    read_blocks,
)
from router.names import looks_like_version
from router.registry.folders import is_ignored
from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS
from router.sources.source import RemoteFile, wrong_name
from router.sources.store import Remote, RemoteFolder
from router.sources.transfer import TAKEN

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
        """All adapter folders by place. Object stores are asked once for each thousand objects, others once
        for each folder. Names that no honest store has are passed over. Raises ResourceExhausted for more
        than MOST_OBJECTS.
        """
        inside: dict[str, list[Remote]] = {}
        for count, (name, entry) in enumerate(asked(self.reference, self._entries), start=1):
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
            entries = asked(f"{self.reference}{place}/", lambda: self._ls(path))
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
    """The latest that is told: copies may keep the date of what they are of."""
    return max(filter(None, (_date(entry.get(key)) for key in DATES)), default=None)


def _date(said: object) -> float | None:
    if isinstance(said, str):
        try:
            said = datetime.fromisoformat(said)
        except ValueError:
            return None
    if isinstance(said, datetime):
        return said.timestamp()
    return float(said) if isinstance(said, int | float) else None


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
