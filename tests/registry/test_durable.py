from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from router.registry import state
from router.registry.state import append, write_atomically


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in order."""
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        done.append(
            f"{kind} {Path(os.readlink(f'/proc/self/fd/{handle}')).name}" if kind == "folder" else kind
        )
        fsync(handle)

    def note_rename(old: str, new: Path) -> None:
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(state.os, "fsync", note_sync)
    monkeypatch.setattr(state.os, "replace", note_rename)
    return done


def test_file_and_folders_are_on_the_disk_when_it_returns(tmp_path: Path, synced: list[str]) -> None:
    write_atomically(tmp_path / "a/b/f", b"new")
    assert synced == [f"folder {tmp_path.name}", "folder a", "file", "rename", "folder b"]
    assert (tmp_path / "a/b/f").read_bytes() == b"new"
    synced.clear()
    append(tmp_path / "a/b/book", "one")
    append(tmp_path / "a/b/book", "two")
    assert synced == ["file", "folder b"] * 2
    assert (tmp_path / "a/b/book").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "f"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(state.os, call, fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert target.read_bytes() == b"old"


def test_a_file_system_that_does_not_sync_folders_is_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not for folders")
        fsync(handle)

    monkeypatch.setattr(state.os, "fsync", fail)
    write_atomically(tmp_path / "f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"
