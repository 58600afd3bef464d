from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from router.extensions.training.export import manifest_text
from router.extensions.training.recipe import Recipe

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(system=texts, example=texts, stop=texts)
def test_any_text_comes_back_from_toml(system: str, example: str, stop: str) -> None:
    recipe = Recipe.model_validate(
        {
            "adapter": {"name": "a"},
            "data": {"train": "t", "valid": "v", "test": "e"},
            "train": {"steps": 1},
            "prompt": {"system": system},
            "generation": {"stop": (stop,)},
            "routing": {"examples": (example, example)},
        }
    )
    read = tomllib.loads(manifest_text(recipe, "base", "d" * 64))
    assert read["prompt"].get("system", "") == system
    assert read["routing"]["examples"] == [example, example]
    assert read["generation"] == {"max_tokens": 64, "temperature": 0.0, "stop": [stop]}
    assert read["base"] == {"model": "base", "digest": "d" * 64}
