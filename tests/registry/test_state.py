"""What survives a restart, and that it is on the disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from router.errors import NotSaved
from router.registry import state
from router.registry.state import DefaultChoices, Hashed, Proven, append_durably, state_dir, write_atomically
from router.types import Override


def choose(choices: DefaultChoices, name: str, version: str = "", override: Override | None = None) -> None:
    """Planned, saved and taken, as the registry does it."""
    change = choices.planned(name, version, override)
    choices.save(change)
    choices.take(change)


def test_each_set_of_folders_has_its_own_state(tmp_path):
    one, two = state_dir([tmp_path / "a"], tmp_path), state_dir([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert one != two
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert state_dir([tmp_path / "link"], tmp_path) == one
    assert state_dir([tmp_path]).is_absolute()


def chosen(choices: DefaultChoices) -> object:
    """Every choice, as the file would have it."""
    return json.loads(choices.document().encoded())["defaults"]


def test_choices_survive(tmp_path):
    choose(DefaultChoices(tmp_path / "s", [tmp_path]), "medical", "1.0.0")
    again = DefaultChoices(tmp_path / "s", [tmp_path])
    again.read()
    assert again.get("medical") == "1.0.0"
    assert again.get("legal") == ""
    assert chosen(again) == {"medical": "1.0.0"}
    assert json.loads((tmp_path / "s/defaults.json").read_text())["adapters_dirs"] == [str(tmp_path)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"defaults": []}', '{"defaults": {"a": 1}}', "\xff"])
def test_a_damaged_file_counts_as_empty_and_is_said(tmp_path, damage, caplog):
    (tmp_path / "defaults.json").write_text(damage, "latin-1")
    choices = DefaultChoices(tmp_path, [])
    choices.read()
    assert not chosen(choices)
    assert "lost" in caplog.text
    choose(choices, "a", "1")
    choices.read()
    assert choices.get("a") == "1"


def test_overrides_go_with_the_choice(tmp_path):
    made = Override("1.1", "me", 1.5, "why", "no report")
    choices = DefaultChoices(tmp_path, [])
    choose(choices, "a", "1.1", made)
    choose(choices, "b", "2.0", replace(made, version="2.0", weights_sha256="ab"))
    assert choices.bind("a", "cd").weights_sha256 == "cd"
    choices.write(choices.document())
    again = DefaultChoices(tmp_path, [])
    again.read()
    assert again.override("a") == replace(made, weights_sha256="cd")
    choose(again, "a", "1.0")
    choose(again, "b")
    choose(again, "never chosen")
    last = DefaultChoices(tmp_path, [])
    last.read()
    assert (chosen(last), last.override("a"), last.override("b")) == ({"a": "1.0"}, None, None)


def test_an_override_that_is_damaged_is_not_believed(tmp_path, caplog):
    choose(DefaultChoices(tmp_path, []), "a", "1.1", Override("1.1", "me", 1.5))
    text = (tmp_path / "defaults.json").read_text().replace("1.5", "null")
    (tmp_path / "defaults.json").write_text(text)
    choices = DefaultChoices(tmp_path, [])
    choices.read()
    assert (choices.get("a"), choices.override("a")) == ("1.1", None)
    assert "overrides of the gate made earlier are lost" in caplog.text


def test_a_choice_that_cannot_be_saved_is_no_choice(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    choices = DefaultChoices(tmp_path / "file/x", [])
    with pytest.raises(NotSaved, match=r"defaults\.json"):
        choose(choices, "a", "1")
    assert choices.get("a") == ""
    assert "default a@1 is not set: cannot write" in caplog.text


def test_the_book_says_what_was_not_saved(tmp_path, monkeypatch, caplog):
    choices, made = DefaultChoices(tmp_path, []), Override("1.1", "me", 1.5)
    choose(choices, "a", "1.0")
    monkeypatch.setattr(state, "write_atomically", full)
    choices.went_back("a", made)
    with pytest.raises(NotSaved, match="No space"):
        choose(choices, "a", "1.1", made)
    assert (choices.get("a"), choices.override("a")) == ("1.0", None)
    lines = [json.loads(line)["action"] for line in (tmp_path / "overrides.jsonl").read_text().splitlines()]
    said = ["not overruled: went back", "overruled"]
    assert lines == [*said, *(f"not saved: {action}" for action in said)]
    monkeypatch.setattr(state.os, "fsync", full)
    with pytest.raises(NotSaved):
        choose(choices, "a", "1.1", made)
    assert "the book may have lines of what was not saved" in caplog.text


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


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
    proven = Proven(tmp_path / "file/x")
    proven.add("k1")
    proven.add("k2")
    assert "k2" in proven
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["probes run again after a restart"]


def test_proven_digests_survive_and_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_ENTRIES", 3)
    proven = Proven(tmp_path)
    proven.read()
    for i in range(8):
        proven.add(f"k{i}")
        proven.add(f"k{i}")
    assert ("k7" in proven, "k5" in proven, "k4" in proven) == (True, True, False)
    again = Proven(tmp_path)
    again.read()
    assert ("k7" in again, "k4" in again) == (True, False)
    assert (tmp_path / "proven").read_text().split() == ["k5", "k6", "k7"]


def test_proven_that_cannot_be_read_is_said(tmp_path, caplog):
    (tmp_path / "proven").write_bytes(b"\xff\xfe")
    Proven(tmp_path).read()
    assert "probes run again" in caplog.text


def test_a_later_value_stands_and_a_damaged_line_counts_as_none(tmp_path):
    hashed = Hashed(tmp_path)
    hashed.note({"a": "1" * 64, "b": "2" * 64})
    hashed.note({"a": "3" * 64})
    with (tmp_path / "weights").open("a") as file:
        file.write("c not-a-hash\n\nb " + "2" * 63)  # the last line was cut off
    again = Hashed(tmp_path)
    again.read()
    assert [again.get(key) for key in "abcd"] == ["3" * 64, None, None, None]
