"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.access.files import Reread
from router.errors import ConfigError


def number(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError:
        raise ConfigError("no number") from None


def test_a_change_is_seen_and_a_bad_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "n"
    path.write_text("1")
    found = Reread([path], lambda: number(path))
    assert (found.value(), found.problem) == (1, "")
    path.write_text("22")
    assert found.value() == 22
    path.write_text("bad")
    assert [found.value(), found.value()] == [22, 22]
    assert found.problem == "no number"
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "changed and not usable; what it said before stays in force"
    ]
    path.unlink()
    assert found.value() == 22
    assert "No such file" in found.problem
    path.write_text("3")
    assert (found.value(), found.problem) == (3, "")


def test_a_replaced_file_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "n", tmp_path / "m"
    path.write_text("1")
    found = Reread([path], lambda: number(path))
    other.write_text("2")
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert found.value() == 2


def test_it_is_made_again_only_after_a_change(tmp_path: Path) -> None:
    path, made = tmp_path / "n", []
    path.write_text("1")
    found = Reread([path], lambda: made.append(1))
    for _ in range(5):
        found.value()
    assert made == [1]


def test_at_first_what_is_wrong_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reread([tmp_path / "none"], lambda: number(tmp_path / "none"))
