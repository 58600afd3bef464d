"""A store in memory that says what S3 says: ETags, and when each file was written."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from router.extensions.object_store.store import ObjectStore
from router.sources.fetching import Cache
from router.sources.mirror import Mirror

URL = "memory://bucket/adapters"
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "adapter.toml"


class Bucket:
    """What a store holds below URL. `asked` counts its requests, `fetched` the bytes that it gave; `fault` is
    raised instead of any answer."""

    def __init__(self) -> None:
        self.files = fsspec.filesystem("memory")
        self.files.store.clear()
        self.files.pseudo_dirs[:] = ["", "/bucket", "/bucket/adapters"]
        self.asked: Counter[str] = Counter()
        self.fetched = 0
        self.fault: Exception | None = None
        self.before_read: Callable[[str], None] = lambda path: None

    def put(self, place: str, files: dict[str, bytes], last: str = MANIFEST) -> None:
        """Upload a folder, `last` last."""
        for name in sorted(files, key=lambda name: name == last):
            self.files.pipe_file(f"/bucket/adapters/{place}/{name}", files[name])

    def drop(self, place: str) -> None:
        self.files.rm(f"/bucket/adapters/{place}", recursive=True)

    def __contains__(self, place: str) -> bool:
        return bool(self.files.exists(f"/bucket/adapters/{place}"))


@pytest.fixture
def bucket(monkeypatch):
    made = Bucket()
    ls, cat = MemoryFileSystem.ls, MemoryFileSystem.cat_file

    def listed(self, path, detail=True, **more):
        made.asked["ls"] += 1
        if made.fault:
            raise made.fault
        found = ls(self, path, detail=detail, **more)
        for entry in found if detail else ():
            if entry["type"] == "file":
                data = self.store[entry["name"]].getvalue()
                entry["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        return found

    def read(self, path, start=None, end=None, **more):
        made.asked["cat"] += 1
        if made.fault:
            raise made.fault
        made.before_read(path)
        data = cat(self, path, start=start, end=end, **more)
        made.fetched += len(data)
        return data

    monkeypatch.setattr(MemoryFileSystem, "ls", listed)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", read)
    monkeypatch.setattr("router.sources.fetching.os.fsync", lambda _: None)
    return made


@pytest.fixture
def adapter(adapter_files):
    """One with a manifest."""
    return {**adapter_files, MANIFEST: b'[adapter]\nname = "contracts"\n'}


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "mirrors" / "cache", 1 << 30)


@pytest.fixture
def make(tmp_path, cache):
    made: list[Mirror] = []

    def make(url: str = URL, folder: str = "one", most_bytes: int = 1 << 30, **options) -> Mirror:
        options = {"cache": cache, "seconds": 0.01, **options}
        made.append(Mirror(ObjectStore(url), tmp_path / "mirrors" / folder, most_bytes=most_bytes, **options))
        return made[-1]

    yield make
    for mirror in made:
        mirror.close()


def turns(mirror: Mirror, number: int = 2) -> None:
    """So many looks; two bring what is finished."""
    for _ in range(number):
        mirror.turn()


def here(mirror: Mirror) -> dict[str, bytes]:
    """What a server would see, by path, the records left out."""
    root = mirror._copies.root
    found = (path for path in root.rglob("*") if path.is_file() and path.name != "source.toml")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def as_put(**places: dict[str, bytes]) -> dict[str, bytes]:
    """What `here` is for these folders, '__' for '/'."""
    return {
        f"{place.replace('__', '/')}/{name}": data
        for place, files in places.items()
        for name, data in files.items()
    }


def settle(monkeypatch, seconds: float) -> None:
    """So much time goes by for anyone who waits for quiet."""
    real = time.monotonic
    monkeypatch.setattr("router.sources.mirror.time.monotonic", lambda: real() + seconds)


def other(adapter: dict[str, bytes], byte: bytes = b"!") -> dict[str, bytes]:
    """The same adapter with other weights, of the same size."""
    return {**adapter, WEIGHTS: adapter[WEIGHTS][:-1] + byte}


def path_of(mirror: Mirror, place: str) -> Path:
    return mirror._copies.root / place
