"""What is remembered across restarts, and what happens where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.registry import persistent_cache
from router.registry.persistent_cache import Hashed, Proven


def test_what_is_proven_is_remembered_without_a_disk_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    proven = Proven(tmp_path / "file/x")
    proven.add("k1")
    proven.add("k2")
    assert "k2" in proven
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["probes run again after a restart"]


def test_proven_digests_survive_and_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent_cache, "MAX_ENTRIES", 3)
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


def test_a_later_value_stands_and_a_damaged_line_counts_as_none(tmp_path: Path) -> None:
    hashed = Hashed(tmp_path)
    hashed.note({"a": "1" * 64, "b": "2" * 64})
    hashed.note({"a": "3" * 64})
    with (tmp_path / "weights").open("a") as file:
        file.write("c not-a-hash\n\nb " + "2" * 63)  # the last line was cut off
    again = Hashed(tmp_path)
    again.read()
    assert [again.get(key) for key in "abcd"] == ["3" * 64, None, None, None]
