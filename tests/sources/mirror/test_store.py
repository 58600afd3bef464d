"""What a prefix holds, by whatever names and kinds of store."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from fsspec.asyn import AsyncFileSystem

from router.errors import NotFound, ResourceExhausted
from router.extensions.object_store import store as module
from router.extensions.object_store.store import ObjectStore
from router.sources.mirror.store import RemoteFolder, age
from tests.sources.mirror.conftest import CONFIG, MANIFEST, URL, WEIGHTS


def put(bucket, *paths: str) -> None:
    for path in paths:
        bucket.files.pipe_file(f"/bucket/adapters/{path}", b"x")


def test_folders_are_found_as_the_registry_finds_them(bucket):
    put(
        bucket, f"plain/{CONFIG}", f"plain/{WEIGHTS}", f"plain/checkpoint-1/{CONFIG}", f"plain/1.0.0/{CONFIG}"
    )
    put(bucket, f"named/1.0.0/{MANIFEST}", f"named/beta/{MANIFEST}", f"named/noversion/{CONFIG}")
    put(bucket, f"deep/1.0.0/inner/{CONFIG}", "calibration.json", "docs/README.md", f".hidden/{CONFIG}")
    put(bucket, f"coming.tmp/{CONFIG}", f"named/.new/{MANIFEST}")
    assert sorted(ObjectStore(URL).listing()) == ["named/1.0.0", "named/beta", "plain"]


def test_only_files_that_an_adapter_may_have_count(bucket):
    put(bucket, f"a/{CONFIG}", "a/train.py", "a/optimizer.pt", "a/README.md", "a/.git", "a/source.toml")
    store = ObjectStore(f"{URL}/")
    before = store.listing()["a"]
    assert set(before.files) == {CONFIG, "README.md"}
    put(bucket, "a/log.txt")
    assert store.listing()["a"].pin == store.folder("a").pin == before.pin
    put(bucket, "a/README.md")
    assert store.listing()["a"].pin != before.pin


def test_a_pin_tells_whether_the_weights_changed(bucket):
    put(bucket, f"a/{CONFIG}", f"a/{WEIGHTS}")
    store = ObjectStore(URL)
    first = store.listing()["a"].pin
    put(bucket, f"a/{CONFIG}")
    second = store.listing()["a"].pin
    assert second != first
    assert second.rpartition("-")[2] == first.rpartition("-")[2]
    put(bucket, f"a/{WEIGHTS}")
    assert store.listing()["a"].pin.rpartition("-")[2] != first.rpartition("-")[2]


def test_a_folder_that_is_gone_has_no_files(bucket):
    assert ObjectStore(URL).folder("a") == RemoteFolder.of("a", ())


@pytest.mark.parametrize(
    "name",
    ["../evil", "..", "a\\b", "a\nb", "a\x1b[2J", "x" * 201, "é" * 101, "", "/etc", "a//b", "C:", "\ud800"],
)
def test_names_that_no_honest_store_has_are_passed_over(bucket, monkeypatch, name):
    root = "/bucket/adapters"
    entries = [
        {"name": f"{root}/{name}/{CONFIG}", "size": 1, "type": "file"},
        {"name": f"{root}/good/{CONFIG}", "size": 1, "type": "file"},
        {"name": f"/elsewhere/{CONFIG}", "size": 1, "type": "file"},
    ]
    store = ObjectStore(URL)
    monkeypatch.setattr(store, "_ls", lambda path: entries if path == root else [])
    assert list(store.listing()) == ["good"]


@pytest.mark.parametrize("size", [None, -1, 1 << 60, "12", True])
def test_a_size_that_is_none(bucket, monkeypatch, size):
    root = "/bucket/adapters"
    entries = [
        {"name": f"{root}/a/{CONFIG}", "size": 1, "type": "file"},
        {"name": f"{root}/a/{WEIGHTS}", "size": size, "type": "file"},
    ]
    store = ObjectStore(URL)
    monkeypatch.setattr(store, "_ls", lambda path: entries if path == root else [])
    assert list(store.listing()["a"].files) == [CONFIG]


def test_links_are_not_followed(tmp_path):
    inside, outside = tmp_path / "store", tmp_path / "outside"
    for folder in (inside / "a", outside):
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text("x")
    (inside / "linked").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "a" / WEIGHTS).symlink_to("/etc/passwd")
    found = ObjectStore(f"file://{inside}").listing()
    assert list(found) == ["a"]
    assert {file.name: file.link for file in found["a"].files.values()} == {CONFIG: False, WEIGHTS: True}


def test_a_prefix_that_is_not_there(tmp_path):
    with pytest.raises(NotFound):
        ObjectStore(f"file://{tmp_path}/none").listing()


class Flat(AsyncFileSystem):
    """As drivers of object stores are: everything below a prefix in one answer."""

    def __init__(self, found):
        super().__init__()
        self.found, self.asked, self.kept = found, 0, 0

    def find(self, path, detail=False, **_):
        self.asked, self.kept = self.asked + 1, 1
        return {entry["name"]: entry for entry in self.found}

    def invalidate_cache(self, path=None):
        self.kept = 0


def of_s3(name: str, **more) -> dict[str, object]:
    written = datetime(2026, 1, 1, tzinfo=UTC)
    return {"name": name, "size": 1, "type": "file", "ETag": '"a"', "LastModified": written, **more}


def flat(monkeypatch, found) -> tuple[ObjectStore, Flat]:
    files = Flat(found)
    monkeypatch.setattr(module, "open_store", lambda url: (files, "bucket/adapters"))
    return ObjectStore("s3://bucket/adapters"), files


def test_thousands_of_folders_are_one_question_and_the_driver_keeps_nothing(monkeypatch):
    names = [f"bucket/adapters/a{n}/1.0.0/{name}" for n in range(2_000) for name in (CONFIG, WEIGHTS)]
    store, files = flat(monkeypatch, list(map(of_s3, names)))
    assert len(store.listing()) == 2_000
    assert (files.asked, files.kept) == (1, 0)


def test_names_of_what_is_not_finished_are_passed_over_in_one_answer_too(monkeypatch):
    names = [".a", "a.tmp", "a.part", "a~", "b/.new", "b/1.0.0.partial", "c"]
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/{name}/{MANIFEST}") for name in names])
    assert list(store.listing()) == ["c"]


def test_more_objects_than_can_be_held_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_OBJECTS", 3)
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/{n}") for n in range(4)])
    with pytest.raises(
        ResourceExhausted, match="holds more than 3 objects: name the prefix of adapters alone"
    ):
        store.listing()


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ({"ETag": f'"{"0a" * 16}"'}, f"1 {'0a' * 16}"),
        ({"ETag": f'"{"0A" * 16}-12"'}, f"1 {'0a' * 16}-12"),
        ({"ETag": '"0x8DC1"'}, ""),
        ({"ETag": '"CJ/gh6=="', "md5Hash": "c2Q="}, "1 c2Q="),
    ],
)
def test_what_says_that_bytes_are_the_same(monkeypatch, entry, content):
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/a/{CONFIG}", **entry)])
    assert store.listing()["a"].files[CONFIG].content == content


@pytest.mark.parametrize(
    "entry",
    [
        {"LastModified": datetime.fromtimestamp(1e9, UTC)},
        {"LastModified": None, "updated": "2001-09-09T01:46:40Z"},
        {"LastModified": None, "mtime": 1e9},
        {"LastModified": None, "mtime": 1.0, "created": 1e9},
    ],
)
def test_when_a_file_was_written(monkeypatch, entry):
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/a/{CONFIG}", **entry)])
    folder = store.listing()["a"]
    assert folder.files[CONFIG].modified == 1e9
    assert age(folder) == pytest.approx(time.time() - 1e9, abs=5)


def test_no_date_is_no_age(monkeypatch):
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/a/{CONFIG}", LastModified="yesterday")])
    assert age(store.listing()["a"]) == 0
