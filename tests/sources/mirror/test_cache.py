"""Files by the digest of their bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import time

import pytest

from router.errors import ConfigError
from router.sources.fetching import LEFT_SECONDS, Cache, private_folder


def kept(cache: Cache, folder, data: bytes) -> str:
    path = folder / "file"
    path.write_bytes(data)
    sha = hashlib.sha256(data).hexdigest()
    cache.keep(path, sha)
    return sha


def blobs(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("cache/sha256/*/*"))


@pytest.fixture
def small(tmp_path) -> Cache:
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
