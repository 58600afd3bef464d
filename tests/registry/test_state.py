"""What survives a restart, and that it is on the disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from router.registry import state
from router.registry.state import append_durably, hashes_in, proven_in, state_dir, write_atomically


def test_each_set_of_folders_has_its_own_state(tmp_path):
    one, two = state_dir([tmp_path / "a"], tmp_path), state_dir([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert one != two
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert state_dir([tmp_path / "link"], tmp_path) == one
    assert state_dir([tmp_path]).is_absolute()


@pytest.fixture
def synced(monkeypatch):
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


def test_file_and_folders_are_on_the_disk_when_it_returns(tmp_path, synced):
    write_atomically(tmp_path / "a/b/f", b"new")
    assert synced == [f"folder {tmp_path.name}", "folder a", "file", "rename", "folder b"]
    assert (tmp_path / "a/b/f").read_bytes() == b"new"
    synced.clear()
    append_durably(tmp_path / "a/b/book", "one")
    append_durably(tmp_path / "a/b/book", "two")
    assert synced == ["file", "folder b"] * 2
    assert (tmp_path / "a/b/book").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    target = tmp_path / "f"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(state.os, call, fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert target.read_bytes() == b"old"


def test_a_file_system_that_does_not_sync_folders_is_none_the_worse(tmp_path, monkeypatch):
    fsync = os.fsync

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not for folders")
        fsync(handle)

    monkeypatch.setattr(state.os, "fsync", fail)
    write_atomically(tmp_path / "f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"


def test_the_built_in_folder_beside_others_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("router.built_in.PACKAGE", tmp_path / "router")
    below = tmp_path / "router" / "_data" / "adapters"
    below.mkdir(parents=True)
    mine, alone = state_dir([tmp_path / "a"], tmp_path), state_dir([below], tmp_path)
    assert state_dir([tmp_path / "a", below], tmp_path) == mine != alone


# -- what is remembered across restarts, and what happens where it cannot be


def test_what_is_proven_is_remembered_without_a_disk_too(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    proven = proven_in(tmp_path / "file/x")
    proven.note("k1")
    proven.note("k2")
    assert "k2" in proven
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["probes run again after a restart"]


def test_proven_digests_survive_and_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_ENTRIES", 3)
    proven = proven_in(tmp_path)
    proven.read()
    for i in range(8):
        proven.note(f"k{i}")
        proven.note(f"k{i}")
    assert ("k7" in proven, "k5" in proven, "k4" in proven) == (True, True, False)
    again = proven_in(tmp_path)
    again.read()
    assert ("k7" in again, "k4" in again) == (True, False)
    assert (tmp_path / "proven").read_text().split() == ["k5", "k6", "k7"]


def test_proven_that_cannot_be_read_is_said(tmp_path, caplog):
    (tmp_path / "proven").write_bytes(b"\xff\xfe")
    proven_in(tmp_path).read()
    assert "probes run again" in caplog.text


def test_a_later_value_stands_and_a_damaged_line_counts_as_none(tmp_path):
    hashed = hashes_in(tmp_path)
    hashed.note("a", "1" * 64)
    hashed.note("b", "2" * 64)
    hashed.note("a", "3" * 64)
    with (tmp_path / "weights").open("a") as file:
        file.write("c not-a-hash\n\nb " + "2" * 63)  # the last line was cut off
    again = hashes_in(tmp_path)
    again.read()
    assert [again.get(key) for key in "abcd"] == ["3" * 64, "", "", ""]
