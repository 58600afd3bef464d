"""One folder of a store, brought here: from the store or the cache, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from router.errors import AdapterRejected, ConfigError
from router.registry.folders import Scanner
from router.registry.format.untrusted import CONFIG_BYTES, MIB
from router.sources.fetching import LEFT_SECONDS, Cache, Copies, private_folder, taken
from router.sources.staging import SourceRecord, StagingArea
from router.sources.store import Remote, RemoteFolder
from tests.sources.mirror.conftest import CONFIG, MANIFEST, WEIGHTS, as_put, here, other, turns


def kept(cache: Cache, folder, data: bytes) -> str:
    path = folder / "file"
    path.write_bytes(data)
    sha = hashlib.sha256(data).hexdigest()
    cache.keep(path, sha)
    return sha


def blobs(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("cache/sha256/*/*"))


@pytest.fixture
def small(tmp_path):
    return Cache(tmp_path / "cache", 25)


def test_a_copy_is_a_file_of_its_own(cache, tmp_path):
    sha = kept(cache, tmp_path, b"weights")
    assert cache.take(sha, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"changed")
    assert cache.take(sha, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"weights"


def test_what_is_not_here(cache, tmp_path):
    assert not cache.take("0" * 64, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_damaged_bytes_are_never_given_and_go(tmp_path, small):
    sha = kept(small, tmp_path, b"weights")
    (tmp_path / "cache/sha256" / sha[:2] / sha).write_bytes(b"wEights")
    assert not small.take(sha, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert blobs(tmp_path) == []


def test_what_was_used_last_stays(tmp_path, small):
    shas = [kept(small, tmp_path, bytes([n]) * 10) for n in range(3)]
    for age, sha in enumerate(shas):
        os.utime(tmp_path / "cache/sha256" / sha[:2] / sha, (0, time.time() - 100 + age))
    assert small.take(shas[0], tmp_path / "copy")
    assert small.trim() == 1
    assert blobs(tmp_path) == sorted([shas[0], shas[2]])
    assert small.trim() == 0


def test_what_is_larger_than_all_that_may_be_kept_is_not(tmp_path, small):
    kept(small, tmp_path, b"x" * 26)
    assert blobs(tmp_path) == []


def test_what_was_left_half_done_goes_when_it_is_old(tmp_path, small):
    kept(small, tmp_path, b"x")
    old, new = tmp_path / "cache/sha256/2d/.old", tmp_path / "cache/sha256/2d/.new"
    old.touch(), new.touch()
    os.utime(old, (0, time.time() - LEFT_SECONDS - 9))
    small.trim()
    assert (old.exists(), new.exists()) == (False, True)


def test_marks_are_known_to_the_next_process(tmp_path, small):
    small.note({"s3://bucket/ a/weights 12 'etag'\n\ud800": "ab" * 32})
    assert Cache(tmp_path / "cache", 25).known("s3://bucket/ a/weights 12 'etag'\n\ud800") == "ab" * 32
    assert small.known("another") == ""


def test_a_file_of_marks_that_is_damaged_costs_a_fetch_and_no_more(tmp_path, small, caplog):
    (tmp_path / "cache/marks").write_bytes(b"\xff\xfe\n")
    assert Cache(tmp_path / "cache", 25).known("a") == ""
    assert "files are fetched again" in caplog.text


def test_it_is_made_for_this_user_alone(tmp_path):
    assert stat.S_IMODE(private_folder(tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "a" / "b").chmod(0o770)
    private_folder(tmp_path / "a" / "b")


def test_one_that_others_may_write_into_is_refused(tmp_path):
    private_folder(tmp_path / "a").chmod(0o703)
    with pytest.raises(ConfigError, match=r"others may write into .*/a: set mirror_dir"):
        private_folder(tmp_path / "a")


def test_one_of_somebody_else_is_refused(tmp_path, monkeypatch):
    private_folder(tmp_path / "a")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="others may write"):
        private_folder(tmp_path / "a")


def test_a_link_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="a is a link"):
        private_folder(tmp_path / "a")


def test_cache_and_mirror_are_such(tmp_path, bucket, make):
    for name in ("cache", "one"):
        private_folder(tmp_path / "mirrors" / name).chmod(0o777)
    with pytest.raises(ConfigError):
        Cache(tmp_path / "mirrors/cache", 1)
    with pytest.raises(ConfigError):
        make(cache=None)


# -- the folder that servers watch


SAID = "s3://bucket/"


def writing(pin: str):
    def fill(folder) -> None:
        (folder / CONFIG).write_text(pin)
        SourceRecord(SAID, "", pin).write(folder)

    return fill


@pytest.fixture
def copies(tmp_path):
    made = Copies(tmp_path, SAID)
    assert made.pins() == {}
    return made


def seen(copies: Copies) -> list[str]:
    found = Scanner([copies.root]).scan().found
    return sorted(str(path.relative_to(copies.root)) for path in found)


def test_what_was_put_is_known_after_a_restart(copies, tmp_path):
    copies.put("a", writing("1")), copies.put("b/1.0.0", writing("2")), copies.put("b/1.1.0", writing("3"))
    assert Copies(tmp_path, SAID).pins() == {"a": "1", "b/1.0.0": "2", "b/1.1.0": "3"}
    assert seen(copies) == ["a", "b/1.0.0", "b/1.1.0"]


def test_what_another_put_there_has_no_pin(copies, tmp_path):
    (copies.root / "mine").mkdir()
    (copies.root / "calibration.json").touch()
    copies.put("a", writing("1"))
    assert Copies(tmp_path, "s3://other/").pins() == {"a": "", "mine": ""}


def test_a_fill_that_fails_changes_nothing(copies, tmp_path):
    copies.put("a", writing("1"))
    with pytest.raises(ZeroDivisionError):
        copies.put("a", lambda folder: 1 / 0)
    assert Copies(tmp_path, SAID).pins() == {"a": "1"}
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_was_left_half_done_goes(copies, tmp_path):
    (tmp_path / "staging/left/being-added").mkdir(parents=True)
    Copies(tmp_path, SAID).pins()
    assert list((tmp_path / "staging").iterdir()) == []


def test_the_last_version_takes_its_name_along(copies):
    copies.put("a/1", writing("1")), copies.put("a/2", writing("2"))
    copies.remove("a/1")
    assert seen(copies) == ["a/2"]
    copies.remove("a/2"), copies.remove("a/2")
    assert list(copies.root.iterdir()) == []


def test_nobody_else_may_look_in(copies, tmp_path):
    for folder in (copies.root, tmp_path / "staging"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# -- one folder brought here, with as little asked for as possible, and whole whenever the process is killed


def test_ten_names_of_the_same_bytes_are_fetched_once(bucket, make, adapter):
    for number in range(10):
        bucket.put(f"a{number}", {**adapter, MANIFEST: f'[adapter]\nname = "a{number}"\n'.encode()})
        mirror = make()
        turns(mirror)
        mirror.close()
    once = sum(map(len, adapter.values())) - len(adapter[MANIFEST])
    assert bucket.fetched == once + 10 * len(b'[adapter]\nname = "a0"\n')
    assert len(here(mirror)) == 10 * len(adapter)


def test_many_names_of_the_same_weights_at_once_are_fetched_once(bucket, make, adapter):
    for number in range(10):
        bucket.put(f"a{number}", {**adapter, MANIFEST: f'[adapter]\nname = "a{number}"\n'.encode()})
    read = []
    bucket.before_read = read.append
    mirror = make()
    turns(mirror)
    assert len(here(mirror)) == 10 * len(adapter)
    assert len([path for path in read if path.endswith(WEIGHTS)]) == 1


def test_a_rollback_is_fetched_from_the_cache(bucket, make, adapter):
    mirror = make()
    for files in (adapter, other(adapter)):
        bucket.put("a", files)
        turns(mirror)
    assert here(mirror) == as_put(a=other(adapter))
    before = bucket.fetched
    bucket.put("a", adapter)
    turns(mirror)
    assert here(mirror) == as_put(a=adapter)
    assert bucket.fetched == before


def test_a_cache_is_held_to_its_limit(bucket, make, adapter, tmp_path):
    size = sum(map(len, adapter.values()))
    mirror = make(cache=Cache(tmp_path / "mirrors/small", size))
    for name in "abc":
        bucket.put(name, other(adapter, name.encode()))
        turns(mirror)
    kept = [path.stat().st_size for path in (tmp_path / "mirrors/small/sha256").glob("*/*")]
    assert 0 < sum(kept) <= size
    assert len(here(mirror)) == 3 * len(adapter)


def test_without_a_cache_all_is_fetched_again(bucket, make, adapter, tmp_path):
    mirror = make(cache=Cache(tmp_path / "mirrors/none", 0))
    bucket.put("a", adapter)
    turns(mirror)
    bucket.put("b", adapter)
    turns(mirror)
    assert here(mirror) == as_put(a=adapter, b=adapter)
    assert bucket.fetched == 2 * sum(map(len, adapter.values()))


def test_what_changes_while_it_is_read_is_taken_when_it_is_still(bucket, make, adapter, tmp_path, caplog):
    bucket.put("a", adapter)
    new = other(adapter)

    def replace(path):
        bucket.before_read = lambda path: None
        bucket.put("a", new)

    bucket.before_read = replace
    mirror = make()
    with caplog.at_level(logging.INFO):
        turns(mirror)
    assert here(mirror) == {}
    assert "changed while it was read" in caplog.text
    assert list((tmp_path / "mirrors/one/fetching").iterdir()) == [], "of two moments, and of no use"
    turns(mirror)
    assert here(mirror) == as_put(a=new)


def test_empty_files_and_none_that_nobody_wants(bucket, make, adapter):
    bucket.put("a", {**adapter, "README.md": b"", "train.py": b"x", "adapter_model.bin": b"x"})
    mirror = make()
    turns(mirror)
    assert here(mirror) == as_put(a={**adapter, "README.md": b""})


def files(**sizes: int) -> RemoteFolder:
    names = {"config": CONFIG, "weights": WEIGHTS}
    return RemoteFolder.of("a", [Remote(names[name], size, "") for name, size in sizes.items()])


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (files(config=CONFIG_BYTES + 1, weights=1), "adapter_config.json has 1048577 bytes, at most"),
        (files(config=1, weights=1 << 31), "it has 2147483649 bytes, and host_memory_mb has room for"),
        (RemoteFolder.of("a", [Remote(WEIGHTS, 1, "", link=True)]), "a link, and none is followed"),
    ],
)
def test_what_is_refused(folder, message):
    with pytest.raises(AdapterRejected, match=message):
        list(taken(folder, 1 << 30))


@pytest.mark.parametrize("readme", [Remote("README.md", MIB + 1, ""), Remote("README.md", 1, "", link=True)])
def test_a_page_that_is_too_long_or_elsewhere_is_left(readme):
    folder = RemoteFolder.of("a", [*files(config=1, weights=1).files.values(), readme])
    assert [file.name for file in taken(folder, 1 << 30)] == [CONFIG, WEIGHTS]


def test_other_sizes_than_announced_are_not_taken(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    real = type(bucket.files).cat_file
    monkeypatch.setattr(
        type(bucket.files), "cat_file", lambda self, path, **part: real(self, path, **part)[:-1]
    )
    mirror = make()
    turns(mirror, 3)
    assert here(mirror) == {}


class Killed(BaseException):
    """As SIGKILL: nothing of the process runs after it."""


def killed_after(patched, steps: int) -> list[int]:
    """Whatever changes the disk or asks the store works so often, and never again."""
    left = [steps]

    def dying(real):
        def step(*arguments, **more):
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        return step

    for owner, name in (
        (os, "replace"), (os, "write"), (Path, "rename"), (Path, "rmdir"), (Path, "unlink"), (Path, "mkdir"),
        (StagingArea, "publish"), (shutil, "rmtree"),
    ):  # fmt: skip
        patched.setattr(owner, name, dying(getattr(owner, name)))
    return left


@pytest.mark.parametrize("change", ["new", "replaced", "removed"])
def test_whenever_it_is_killed_each_folder_is_old_or_new_and_the_next_one_goes_on(
    bucket, make, adapter, tmp_path, change, monkeypatch
):
    monkeypatch.setattr("router.sources.mirror.FETCHERS", 1)
    monkeypatch.setattr("router.extensions.object_store.store.BLOCK", 300)
    before = {"keep": adapter} if change == "new" else {"keep": adapter, "a": adapter}
    after = {"keep": adapter} if change == "removed" else {"keep": adapter, "a": other(adapter)}
    for steps in range(80):
        own = {"folder": f"m{steps}", "cache": Cache(tmp_path / f"c{steps}", 1 << 30)}
        with contextlib.suppress(FileNotFoundError):
            bucket.drop("a")
        for place, files in before.items():
            bucket.put(place, files)
        mirror = make(**own)
        turns(mirror)
        bucket.drop("a") if change == "removed" else bucket.put("a", after["a"])
        with monkeypatch.context() as patched:
            left = killed_after(patched, steps)
            with contextlib.suppress(Killed):
                turns(mirror)
        mirror.close()
        assert here(mirror) in (as_put(**before), as_put(**after))
        again = make(**own)
        turns(again)
        assert here(again) == as_put(**after)
        again.close()
        if left[0]:
            break
    assert left[0], "the last one was not killed"
    assert steps > (12 if change != "removed" else 3), "there is more to interrupt than that"
