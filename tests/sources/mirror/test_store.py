"""What a store has, and which of its folders are finished."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from fsspec.asyn import AsyncFileSystem

from router.errors import NotFound, ResourceExhausted
from router.extensions.object_store import store as module
from router.extensions.object_store.store import ObjectStore
from router.sources.store import OLD_SECONDS, QUIET_SECONDS, Remote, RemoteFolder, Survey, age
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
    assert age(folder) == NOW - 1e9


def test_no_date_is_no_age(monkeypatch):
    store, _ = flat(monkeypatch, [of_s3(f"bucket/adapters/a/{CONFIG}", LastModified="yesterday")])
    assert age(store.listing()["a"]) == 0


# -- when a folder of a store is finished


NOW = time.time()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The time at which the folders below were made, however long ago that was."""
    monkeypatch.setattr("router.sources.store.time", SimpleNamespace(time=lambda: NOW))


def folder(place: str = "a", **dates: float | None) -> RemoteFolder:
    """Files by when they were written, seconds after NOW."""
    names = {"config": CONFIG, "weights": WEIGHTS, "manifest": MANIFEST}
    files = [
        Remote(names[name], 1, f"{date}", modified=None if date is None else NOW + date)
        for name, date in dates.items()
    ]
    return RemoteFolder.of(place, files)


def looked(after: RemoteFolder, before: RemoteFolder | None = None, quiet: float = 5.0) -> list[str]:
    """What is ready `quiet` seconds after it was first seen, where `before` is here."""
    survey, here = Survey(), {} if before is None else {before.place: before.pin}
    assert survey.look({after.place: after}, here, 0.0).ready == []
    return [one.place for one in survey.look({after.place: after}, here, quiet).ready]


OLD = folder(config=-99, weights=-99, manifest=-99)


@pytest.mark.parametrize(
    ("now", "before", "ready"),
    [
        (folder(config=0, weights=1), None, True),
        (folder(config=0, weights=1, manifest=0), None, True),
        (folder(config=0, manifest=0), None, False),  # the weights are not there yet
        (folder(manifest=0), None, False),
        (folder(config=0, weights=1, manifest=2), OLD, True),
        (folder(config=0, weights=1, manifest=1), OLD, True),  # dates have whole seconds
        (folder(config=0, weights=2, manifest=1), OLD, False),
        (folder(config=-99, weights=-99, manifest=1), OLD, False),  # other weights may be on their way
        (folder(config=0, weights=1), OLD, False),  # nothing says that this is all
        (folder(config=0, weights=1, manifest=None), OLD, False),
    ],
)
def test_when_it_is_taken_at_the_second_look(now, before, ready):
    assert bool(looked(now, before)) is ready
    assert looked(now, before, QUIET_SECONDS) == ["a"]


def test_what_was_written_long_ago_is_finished():
    old = folder(config=-OLD_SECONDS - 9, manifest=-OLD_SECONDS - 9)
    assert looked(old) == ["a"]


def test_time_begins_again_with_each_change():
    survey, waiting = Survey(), {"a": folder(config=0)}
    survey.look(waiting, {}, 0.0)
    assert survey.look(waiting, {}, QUIET_SECONDS - 1).ready == []
    survey.look({"a": folder(config=1)}, {}, QUIET_SECONDS)
    assert survey.look({"a": folder(config=1)}, {}, QUIET_SECONDS + 5).ready == []


def test_what_is_here_is_not_taken_again():
    survey = Survey()
    for _ in range(3):
        due = survey.look({"a": OLD}, {"a": OLD.pin}, 0.0)
        assert (due.ready, due.gone, due.fresh) == ([], [], 0)


def test_gone_is_what_two_looks_do_not_have():
    survey = Survey()
    first = survey.look({}, {"a": OLD.pin}, 0.0)
    assert (first.gone, first.fresh) == ([], 1)
    assert survey.look({"a": OLD}, {"a": OLD.pin}, 1.0).gone == []
    assert survey.look({}, {"a": OLD.pin}, 2.0).gone == []
    assert survey.look({}, {"a": OLD.pin}, 3.0).gone == ["a"]
