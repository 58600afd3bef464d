from __future__ import annotations

import errno
from pathlib import Path

import pytest

from router.errors import FailedPrecondition, ResourceExhausted
from router.extensions.training.files import new_folder, write_file


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("router.registry.state.os.fsync", no_space)


def test_full_disk_keeps_the_old_file(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    with pytest.raises(ResourceExhausted, match=r"disk is full.*--resume"):
        write_file(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        write_file(blocked / "below", b"new")


def test_folder_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with new_folder(target, "marker") as folder:
        (folder / "marker").write_text("1")
        assert not target.exists()
    assert (target / "marker").read_text() == "1"


def test_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "marker").write_text("old")

    def fail() -> None:
        with new_folder(target, "marker") as folder:
            (folder / "marker").write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceExhausted):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (target / "marker").read_text() == "old"


def test_replaces_only_what_it_knows(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    with pytest.raises(FailedPrecondition, match="choose another --output"), new_folder(target, "marker"):
        pass
    assert (target / "letter.txt").read_text() == "dear"
    (target / "marker").write_text("")
    with new_folder(target, "marker") as folder:
        (folder / "new").write_text("")
    assert [path.name for path in target.iterdir()] == ["new"]
