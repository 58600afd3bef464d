from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.registry.disk.places import is_ignored, places, stamp


def folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text(name)
    return path


def layout(top: Path) -> list[tuple[str, str, str]]:
    return [(p.folder.relative_to(top.parent).as_posix(), p.name, p.version) for p in places(top)]


def test_one_folder_is_one_version_whatever_lies_beside_its_files(tmp_path: Path) -> None:
    top = folder(tmp_path / "medical", "adapter_config.json")
    folder(top / "1.0.0", "adapter_config.json")
    assert layout(top) == [("medical", "medical", "")]


def test_folders_called_like_versions_or_with_a_manifest_are_versions(tmp_path: Path) -> None:
    top = folder(tmp_path / "medical")
    folder(top / "1.0.0", "adapter_config.json")
    folder(top / "stable", "adapter.toml")
    folder(top / ".git", "adapter.toml")
    folder(top / "notes")
    assert layout(top) == [("medical/1.0.0", "medical", "1.0.0"), ("medical/stable", "medical", "stable")]


def test_an_adapter_one_level_down_belongs_to_its_parent(tmp_path: Path) -> None:
    top = folder(tmp_path / "medical")
    inner = folder(top / "custom", "adapter_config.json")
    assert layout(top) == [("medical", "medical", "")]
    assert [f[0] for f in stamp(top, tmp_path).files] == ["custom/adapter_config.json"]
    before = stamp(top, tmp_path)
    (inner / "adapter_model.safetensors").write_text("x")
    assert stamp(top, tmp_path) != before


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "a~", "a.part", ".a.swp"])
def test_hidden_and_temporary_names_are_ignored(name: str, tmp_path: Path) -> None:
    assert is_ignored(name)
    top = folder(tmp_path / "a", "adapter_config.json", name)
    assert [f[0] for f in stamp(top, tmp_path).files] == ["adapter_config.json"]


def test_a_stamp_shows_every_kind_of_change(tmp_path: Path) -> None:
    top = folder(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    weights, seen = top / "adapter_model.safetensors", [stamp(top, tmp_path)]
    assert stamp(top, tmp_path) == seen[0]
    times = weights.stat()
    with weights.open("r+b") as file:  # same size, and the writer restores the time
        file.write(b"A")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.append(stamp(top, tmp_path))
    (tmp_path / "new").write_text("adapter_model.safetensors")
    (tmp_path / "new").rename(weights)
    seen.append(stamp(top, tmp_path))
    os.truncate(weights, 3)
    seen.append(stamp(top, tmp_path))
    weights.chmod(0)
    seen.append(stamp(top, tmp_path))
    (top / "probes.jsonl").write_text("")
    seen.append(stamp(top, tmp_path))
    assert len(set(seen)) == len(seen)


def test_what_a_trainer_keeps_writing_beside_an_adapter_does_not_count(tmp_path: Path) -> None:
    top = folder(tmp_path / "a", "adapter_config.json")
    before = stamp(top, tmp_path)
    folder(top / "checkpoint-500", "adapter_model.safetensors")
    for name in ("trainer_state.json", "events.out.tfevents.1", "report.json", "README.md"):
        (top / name).write_text("")
    assert stamp(top, tmp_path) == before


def test_links_are_refused_wherever_they_lead(tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", "adapter_config.json")
    root = folder(tmp_path / "root")
    folder(root / "real" / "1.0", "adapter_config.json")
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "real")
    assert "symbolic link" in stamp(root / "out", root).refused
    assert "symbolic link" in stamp(root / "in/1.0", root).refused
    assert not stamp(root / "real/1.0", root).refused


def test_a_folder_that_cannot_be_listed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = folder(tmp_path / "a", "adapter_config.json")

    def denied(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    assert stamp(top, tmp_path).refused == "cannot be read: Permission denied"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        stamp(tmp_path / "none", tmp_path)
