from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from router.registry import state
from router.registry.state import Choices, Proven, state_dir, write_atomically
from router.types import Override


def test_each_set_of_folders_has_its_own_state(tmp_path: Path) -> None:
    one, two = state_dir([tmp_path / "a"], tmp_path), state_dir([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert one != two
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert state_dir([tmp_path / "link"], tmp_path) == one
    assert state_dir([tmp_path]).is_absolute()


def test_choices_survive(tmp_path: Path) -> None:
    Choices(tmp_path / "s", [tmp_path]).set("medical", "1.0.0")
    again = Choices(tmp_path / "s", [tmp_path])
    again.read()
    assert again.get("medical") == "1.0.0"
    assert again.get("legal") == ""
    assert again.all() == {"medical": "1.0.0"}
    assert json.loads((tmp_path / "s/defaults.json").read_text())["adapters_dirs"] == [str(tmp_path)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"defaults": []}', '{"defaults": {"a": 1}}', "\xff"])
def test_a_damaged_file_counts_as_empty_and_is_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "defaults.json").write_text(damage, "latin-1")
    choices = Choices(tmp_path, [])
    choices.read()
    assert not choices.all()
    assert "lost" in caplog.text
    choices.set("a", "1")
    choices.read()
    assert choices.get("a") == "1"


def test_overrides_go_with_the_choice(tmp_path: Path) -> None:
    made = Override("1.1", "me", 1.5, "why", "no report")
    choices = Choices(tmp_path, [])
    choices.set("a", "1.1", made)
    choices.set("b", "2.0", replace(made, version="2.0", weights_sha256="ab"))
    assert choices.bind("a", "cd").weights_sha256 == "cd"
    again = Choices(tmp_path, [])
    again.read()
    assert again.override("a") == replace(made, weights_sha256="cd")
    again.set("a", "1.0")
    again.clear("b")
    again.clear("never chosen")
    last = Choices(tmp_path, [])
    last.read()
    assert (last.all(), last.override("a"), last.override("b")) == ({"a": "1.0"}, None, None)


def test_an_override_that_is_damaged_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Choices(tmp_path, []).set("a", "1.1", Override("1.1", "me", 1.5))
    text = (tmp_path / "defaults.json").read_text().replace("1.5", "null")
    (tmp_path / "defaults.json").write_text(text)
    choices = Choices(tmp_path, [])
    choices.read()
    assert (choices.get("a"), choices.override("a")) == ("1.1", None)
    assert "overrides of the gate made earlier are lost" in caplog.text


def test_a_folder_that_cannot_be_written_costs_the_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    choices, proven = Choices(tmp_path / "file/x", []), Proven(tmp_path / "file/x")
    choices.set("a", "1")
    proven.add("k1")
    proven.add("k2")
    assert choices.get("a") == "1"
    assert "k2" in proven
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "default a@1 holds until restart",
        "probes run again after a restart",
    ]


def test_proven_digests_survive_and_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MOST_PROVEN", 3)
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


def test_proven_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "proven").write_bytes(b"\xff\xfe")
    Proven(tmp_path).read()
    assert "probes run again" in caplog.text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(state.os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert target.read_bytes() == b"old"
