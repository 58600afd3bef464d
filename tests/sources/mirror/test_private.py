"""Folders that nobody else may write into."""

from __future__ import annotations

import os
import stat

import pytest

from router.errors import ConfigError
from router.sources.mirror.cache import Cache
from router.sources.mirror.private import private_folder


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
