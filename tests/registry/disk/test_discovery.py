from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.registry.disk import places
from router.registry.disk.places import Scan, Scanner


def adapter(path: Path, weights: str = "w") -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_text(weights)
    return path


def names(scan: Scan) -> list[str]:
    return [p.name for p in scan.found]


def test_order_is_that_of_the_dirs_then_names(tmp_path: Path) -> None:
    for path in ("one/b", "one/a", "two/a", "one/.hidden", "one/c.tmp"):
        adapter(tmp_path / path)
    (tmp_path / "one/README.md").write_text("")
    scan = Scanner([tmp_path / "two", tmp_path / "one", tmp_path / "missing"]).scan()
    assert [p.relative_to(tmp_path).as_posix() for p in scan.found] == ["two/a", "one/a", "one/b"]
    assert not scan.unreadable


def test_new_removed_and_renamed_files_are_found_without_looking_at_every_file(tmp_path: Path) -> None:
    for name in "abc":
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
    second = scanner.scan(everything=False)
    assert names(second) == ["a", "b", "d"]
    assert all(second.found[tmp_path / n].stamp != first.found[tmp_path / n].stamp for n in "ab")


def test_files_written_in_place_are_found_by_hint_or_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SHARE", 2)
    for name in "abcde":
        adapter(tmp_path / name)
    scanner = Scanner([tmp_path])
    first = scanner.scan()

    def rewrite(name: str, text: str) -> None:
        with (tmp_path / name / "adapter_model.safetensors").open("r+") as file:
            file.write(text)

    rewrite("e", "x")
    weights = tmp_path / "e/adapter_model.safetensors"
    hinted = scanner.scan({weights}, everything=False).found[tmp_path / "e"]
    assert hinted.stamp != first.found[tmp_path / "e"].stamp
    rewrite("d", "yy")
    seen = [scanner.scan(everything=False).found[tmp_path / "d"].stamp for _ in range(3)]
    assert first.found[tmp_path / "d"].stamp != seen[-1]


def test_versions_inside_a_name_are_watched_too(tmp_path: Path) -> None:
    adapter(tmp_path / "m/1.0")
    adapter(tmp_path / "m/2.0")
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    (tmp_path / "m/2.0/adapter.toml").write_text("")
    after = scanner.scan(everything=False)
    assert names(after) == ["1.0", "2.0"]
    assert before.found[tmp_path / "m/2.0"].stamp != after.found[tmp_path / "m/2.0"].stamp


def test_a_dir_that_cannot_be_listed_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_link_as_adapters_dir_is_followed_each_time(tmp_path: Path) -> None:
    adapter(tmp_path / "v1/a")
    adapter(tmp_path / "v2/b")
    link = tmp_path / "current"
    link.symlink_to("v1")
    scanner = Scanner([link])
    assert names(scanner.scan()) == ["a"]
    link.unlink()
    link.symlink_to("v2")
    assert names(scanner.scan(everything=False)) == ["b"]


def test_an_idle_compare_looks_into_few_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SHARE", 5)
    for i in range(50):
        adapter(tmp_path / f"a{i}")
    scanner, real, listed = Scanner([tmp_path]), os.scandir, list[Path]()
    scanner.scan()

    def counting(path: os.PathLike[str]) -> object:
        listed.append(Path(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", counting)
    assert len(scanner.scan(everything=False).found) == 50
    assert len(set(listed)) == 1 + 5
