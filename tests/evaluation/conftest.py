from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.training import train
from tests.training.tiny import recipe_text, save_base, write_data


@pytest.fixture(scope="session", autouse=True)
def plain_operations() -> Iterator[None]:
    """The engine without its native operations, which do not take the tiny base's narrow heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_ROUTER_NATIVE", "false")
        patch.setenv("LORA_ROUTER_THREADS", "1")  # so small a model is slower with more
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes/, its data and adapters/colours, trained for a few steps."""
    root = tmp_path_factory.mktemp("evaluated")
    recipes = root / "recipes"
    recipes.mkdir()
    write_data(recipes)
    (recipes / "colours.toml").write_text(recipe_text(save_base(root / "base"), steps=12))
    train(recipes / "colours.toml", root / "adapters" / "colours", work=root / "work", device="cpu")
    return root
