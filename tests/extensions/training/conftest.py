from __future__ import annotations

from pathlib import Path

import pytest

from tests.extensions.training.tiny import recipe_text, save_base, write_data


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Path:
    """A whole recipe with its data."""
    write_data(tmp_path)
    path = tmp_path / "colours.toml"
    path.write_text(recipe_text(tiny_base))
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the tiny base needs transformers, which takes seconds to load."""
    for item in items:
        if {"tiny_base"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
