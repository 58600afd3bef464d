"""Adapters and plugins that come with lora-router."""

from __future__ import annotations

from pathlib import Path

import pytest

import router.carried
from router.carried import carried, is_carried, own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "router"
    folder.mkdir(parents=True)
    monkeypatch.setattr(router.carried, "PACKAGE", folder)
    return folder


def test_a_wheel_carries_them_inside_the_package(package: Path) -> None:
    assert carried("plugins") == ()
    (package / "_data" / "plugins").mkdir(parents=True)
    assert carried("plugins") == (package / "_data" / "plugins",)


def test_a_checkout_has_them_beside_the_package(package: Path) -> None:
    (package.parent / "plugins").mkdir()
    assert carried("plugins") == ()
    (package.parent / "pyproject.toml").touch()
    assert carried("plugins") == (package.parent / "plugins",)


def test_a_link_to_the_carried_folder_is_the_carried_folder(package: Path, tmp_path: Path) -> None:
    inside = package / "_data" / "adapters"
    inside.mkdir(parents=True)
    (tmp_path / "adapters").symlink_to(inside)
    assert is_carried(tmp_path / "adapters", "adapters")
    assert own([tmp_path / "mine", inside], "adapters") == (tmp_path / "mine",)
