"""Which adapters and plugins come with lora-router."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import router.built_in
from router.built_in import built_in_folders, is_built_in, is_built_in_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "router"
    folder.mkdir(parents=True)
    monkeypatch.setattr(router.built_in, "PACKAGE", folder)
    return folder


def test_an_installed_package_has_them_inside(package: Path) -> None:
    assert built_in_folders("plugins") == ()
    (package / "_data" / "plugins").mkdir(parents=True)
    assert built_in_folders("plugins") == (package / "_data" / "plugins",)


def test_a_checkout_has_them_beside_the_package(package: Path) -> None:
    (package.parent / "plugins").mkdir()
    assert built_in_folders("plugins") == ()
    (package.parent / "pyproject.toml").touch()
    assert built_in_folders("plugins") == (package.parent / "plugins",)


def test_a_link_to_their_folder_is_their_folder(package: Path, tmp_path: Path) -> None:
    inside = package / "_data" / "adapters"
    inside.mkdir(parents=True)
    (tmp_path / "adapters").symlink_to(inside)
    assert is_built_in_folder(tmp_path / "adapters", "adapters")
    assert not is_built_in_folder(tmp_path / "mine", "adapters")


def test_what_a_user_adds_to_a_checkout_is_not_built_in(package: Path, tmp_path: Path) -> None:
    (package.parent / "pyproject.toml").touch()
    for folder in ("adapters", "plugins"):
        (package.parent / folder).mkdir()
    adapters, plugins = package.parent / "adapters", package.parent / "plugins"
    assert is_built_in(adapters / "medical", "adapters")
    assert is_built_in(plugins / "examples.py", "plugins")
    assert not is_built_in(adapters / "contracts", "adapters")
    assert not is_built_in(plugins / "shout.py", "plugins")
    assert not is_built_in(tmp_path / "adapters" / "medical", "adapters"), "a user's folder of that name"


def test_the_list_of_what_is_shipped_is_what_git_has() -> None:
    done = subprocess.run(
        ["git", "ls-files", "adapters", "plugins"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        pytest.skip("this is no clone")
    listed = (ROOT / "router" / "shipped.txt").read_text(encoding="utf-8")
    assert listed == done.stdout, "write it anew: git ls-files adapters plugins > router/shipped.txt"
