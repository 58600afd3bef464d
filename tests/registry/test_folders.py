"""Where adapter folders are, what changed in them, and which have stopped changing."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from router.registry.folders import (
    LONG_UNTOUCHED,
    FoundFolder,
    Place,
    Scan,
    Scanner,
    Settling,
    is_ignored,
    look_at,
    places,
    weights_sha256,
)
from router.registry.format.folder import FolderError
from tests.registry.cards import hand_in, weights_of
from tests.registry.life import drop


def folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text(name)
    return path


def stamp_of(path: Path, root: Path) -> FoundFolder:
    return look_at(Place(path, path.name), root)


def layout(top: Path) -> list[tuple[str, str, str]]:
    return [(p.folder.relative_to(top.parent).as_posix(), p.name, p.version) for p in places(top)]


def test_one_folder_is_one_version_whatever_lies_beside_its_files(tmp_path):
    top = folder(tmp_path / "medical", "adapter_config.json")
    folder(top / "1.0.0", "adapter_config.json")
    assert layout(top) == [("medical", "medical", "")]


def test_folders_called_like_versions_or_with_a_manifest_are_versions(tmp_path):
    top = folder(tmp_path / "medical")
    folder(top / "1.0.0", "adapter_config.json")
    folder(top / "stable", "adapter.toml")
    folder(top / ".git", "adapter.toml")
    folder(top / "notes")
    assert layout(top) == [("medical/1.0.0", "medical", "1.0.0"), ("medical/stable", "medical", "stable")]


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "a~", "a.part", ".a.swp"])
def test_hidden_and_temporary_names_are_ignored(name, tmp_path):
    assert is_ignored(name)
    top = folder(tmp_path / "a", "adapter_config.json", name)
    assert [f[0] for f in stamp_of(top, tmp_path).files] == ["adapter_config.json"]


def test_a_stamp_shows_every_kind_of_change(tmp_path):
    top = folder(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    weights, seen = top / "adapter_model.safetensors", [stamp_of(top, tmp_path)]
    assert stamp_of(top, tmp_path) == seen[0]
    times = weights.stat()
    with weights.open("r+b") as file:  # same size, and the writer restores the time
        file.write(b"A")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.append(stamp_of(top, tmp_path))
    (tmp_path / "new").write_text("adapter_model.safetensors")
    (tmp_path / "new").rename(weights)
    seen.append(stamp_of(top, tmp_path))
    os.truncate(weights, 3)
    seen.append(stamp_of(top, tmp_path))
    weights.chmod(0)
    seen.append(stamp_of(top, tmp_path))
    (top / "probes.jsonl").write_text("")
    seen.append(stamp_of(top, tmp_path))
    assert len(set(seen)) == len(seen)


def test_what_a_trainer_keeps_writing_beside_an_adapter_does_not_count(tmp_path):
    top = folder(tmp_path / "a", "adapter_config.json")
    before = stamp_of(top, tmp_path)
    folder(top / "checkpoint-500", "adapter_model.safetensors")
    for name in ("trainer_state.json", "events.out.tfevents.1", "report.json", "README.md"):
        (top / name).write_text("")
    assert stamp_of(top, tmp_path).same_files(before)


def test_links_are_refused_wherever_they_lead(tmp_path):
    outside = folder(tmp_path / "outside", "adapter_config.json")
    root = folder(tmp_path / "root")
    folder(root / "real" / "1.0", "adapter_config.json")
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "real")
    assert "symbolic link" in stamp_of(root / "out", root).refused
    assert "symbolic link" in stamp_of(root / "in/1.0", root).refused
    assert not stamp_of(root / "real/1.0", root).refused


def test_a_folder_that_cannot_be_listed_says_so(tmp_path, monkeypatch):
    top = folder(tmp_path / "a", "adapter_config.json")

    def denied(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    assert stamp_of(top, tmp_path).refused == "cannot be read: Permission denied"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        stamp_of(tmp_path / "none", tmp_path)


def adapter(path: Path, weights: str = "w") -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_text(weights)
    return path


def names(scan: Scan) -> list[str]:
    return [p.name for p in scan.found]


def test_order_is_that_of_the_dirs_then_names(tmp_path):
    for path in ("one/b", "one/a", "two/a", "one/.hidden", "one/c.tmp"):
        adapter(tmp_path / path)
    (tmp_path / "one/README.md").write_text("")
    scan = Scanner([tmp_path / "two", tmp_path / "one", tmp_path / "missing"]).scan()
    assert [p.relative_to(tmp_path).as_posix() for p in scan.found] == ["two/a", "one/a", "one/b"]
    assert not scan.unreadable


def test_new_removed_renamed_and_rewritten_files_are_found(tmp_path):
    for name in "abce":
        adapter(tmp_path / name)
    scanner = Scanner([tmp_path])
    first = scanner.scan()
    (tmp_path / "a/probes.jsonl").write_text("")
    (tmp_path / "new").write_text("other")
    (tmp_path / "new").rename(tmp_path / "b/adapter_model.safetensors")
    adapter(tmp_path / "d")
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    (tmp_path / "c").rmdir()
    with (tmp_path / "e/adapter_model.safetensors").open("r+") as file:
        file.write("x")
    second = scanner.scan()
    assert names(second) == ["a", "b", "d", "e"]
    assert not any(second.found[tmp_path / n].same_files(first.found[tmp_path / n]) for n in "abe")


def test_versions_inside_a_name_are_watched_too(tmp_path):
    adapter(tmp_path / "m/1.0")
    adapter(tmp_path / "m/2.0")
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    (tmp_path / "m/2.0/adapter.toml").write_text("")
    after = scanner.scan()
    assert names(after) == ["1.0", "2.0"]
    assert not before.found[tmp_path / "m/2.0"].same_files(after.found[tmp_path / "m/2.0"])


def test_a_dir_that_cannot_be_listed_keeps_what_it_had(tmp_path, monkeypatch):
    adapter(tmp_path / "x/a")
    adapter(tmp_path / "y/b")
    scanner, real = Scanner([tmp_path / "x", tmp_path / "y"]), os.scandir
    scanner.scan()

    def flaky(path: os.PathLike[str]) -> object:
        if Path(path) == tmp_path / "x":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", flaky)
    scan = scanner.scan()
    assert sorted(names(scan)) == ["a", "b"]
    assert scan.unreadable == {tmp_path / "x": "Input/output error"}


def test_a_link_as_adapters_dir_is_followed_each_time(tmp_path):
    adapter(tmp_path / "v1/a")
    adapter(tmp_path / "v2/b")
    link = tmp_path / "current"
    link.symlink_to("v1")
    scanner = Scanner([link])
    assert names(scanner.scan()) == ["a"]
    link.unlink()
    link.symlink_to("v2")
    assert names(scanner.scan()) == ["b"]


def changed(before: Scan, after: Scan) -> list[str]:
    """What is new or another object."""
    return [path.name for path, found in after.found.items() if before.found.get(path) is not found]


def test_a_scan_gives_the_same_object_for_what_did_not_change(tmp_path):
    for name in "abc":
        adapter(tmp_path / name)
    scanner = Scanner([tmp_path])
    first = scanner.scan()
    assert changed(first, scanner.scan()) == []  # every file was looked at
    (tmp_path / "a/probes.jsonl").write_text("")
    (tmp_path / "b").rename(tmp_path / "d")
    hand_in(tmp_path / "c")  # a report alone is a change, too
    second = scanner.scan()
    assert changed(first, second) == ["a", "c", "d"]
    assert tmp_path / "b" not in second.found
    assert second.found[tmp_path / "c"].same_files(first.found[tmp_path / "c"])


def test_a_scan_by_names_looks_into_what_is_new_or_named_and_no_other(tmp_path, monkeypatch):
    for i in range(20):
        adapter(tmp_path / f"a{i:02}")
    adapter(tmp_path / "m/1.0")
    scanner, real, seen = Scanner([tmp_path]), os.scandir, list[str]()
    first = scanner.scan()
    (tmp_path / "a00").rename(tmp_path / "b")
    for name in ("a01", "a02", "m/1.0"):
        (tmp_path / name / "probes.jsonl").write_text("")

    def counting(path: os.PathLike[str]) -> object:
        seen.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(os, "scandir", counting)
    dirty = {tmp_path / "a01/probes.jsonl", tmp_path / "m/1.0/probes.jsonl", Path("/elsewhere/a02")}
    second = scanner.scan(dirty, every_file=False)
    assert changed(first, second) == ["a01", "b", "1.0"]
    assert tmp_path / "a00" not in second.found
    assert set(seen) == {tmp_path.name, "a01", "b", "m", "1.0"}


A, B = Path("/x/a"), Path("/x/b")


def found(path: Path, size: int, age: float = 0.0) -> FoundFolder:
    changed = int((time.time() - age) * 1e9)
    return FoundFolder(Place(path, path.name), path.parent, (("w", size, changed, changed, 1),))


class Watched(Settling):
    def __init__(self, settle: float, grace: float = 0.0) -> None:
        super().__init__([], settle, grace)

    def seen(self, now: float, *there: FoundFolder) -> tuple[list[FoundFolder], list[Path]]:
        """Folders to be examined and gone ones, where these are there now."""
        self.note(Scan({f.place.folder: f for f in there}, {}), now)
        return self.due(now)


def test_a_folder_is_due_once_after_it_was_the_same_for_two_looks():
    settling, one, two = Watched(0.3), found(A, 1), found(A, 2)
    assert settling.seen(10.0, one) == ([], [])
    assert settling.awaited() == {A}
    assert settling.seen(10.4, two) == ([], [])  # changed in between
    assert settling.seen(10.8, two) == ([two], [])
    assert settling.seen(11.0, two) == ([two], [])  # until it was examined
    settling.done(two)
    assert (settling.seen(12.0, two), settling.awaited()) == (([], []), set())
    settling.again(A)
    assert settling.seen(13.0, two) == ([two], [])


def test_what_has_changed_not_long_ago_may_still_be_copied():
    settling, one, two = Watched(0.3, grace=3.0), found(A, 1), found(A, 2)
    settling.seen(10.0, two)
    assert settling.is_fresh(two, 12.9)
    assert not settling.is_fresh(two, 13.1)
    assert settling.is_fresh(one, 13.1)


def test_what_was_examined_while_it_changed_is_not_done():
    settling, one, two = Watched(0.3), found(A, 1), found(A, 2)
    settling.seen(10.0, one)
    settling.seen(10.1, two)
    settling.done(one)
    assert settling.seen(11.0, two) == ([two], [])


def test_at_the_start_what_is_old_need_not_be_waited_for():
    settling, old, new = Watched(0.3), found(A, 1, LONG_UNTOUCHED + 5), found(B, 1)
    assert settling.seen(10.0, old, new) == ([old], [])
    assert B in settling.awaited()
    moved_in = replace(found(Path("/x/c"), 1), files=old.files)
    assert settling.seen(10.1, old, new, moved_in) == ([old], [])


def test_a_folder_is_gone_after_it_was_missing_for_two_looks():
    settling, one = Watched(0.3), found(A, 1, 100)
    settling.seen(10.0, one)
    settling.done(one)
    assert settling.seen(11.0) == ([], [])
    assert settling.awaited() == {A}
    assert settling.seen(11.2, one) == ([], [])
    assert settling.seen(11.4) == ([], [])
    assert settling.seen(11.8) == ([], [A])
    assert settling.seen(12.2) == ([], [])


# -- reading


def test_weights_are_those_that_a_load_would_read(tmp_path):
    folder = drop(tmp_path, "m")
    assert weights_sha256(folder) == weights_of(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FolderError):
        weights_sha256(folder)
