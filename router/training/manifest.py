"""Writes adapter.toml from a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from router.training.recipe import Recipe


def manifest_text(recipe: Recipe, base_name: str, base_digest: str) -> str:
    """The manifest; values that the recipe leaves at nothing are left out."""
    tables = {
        "adapter": recipe.adapter.model_dump(),
        "base": {"model": base_name, "digest": base_digest},
        "prompt": recipe.prompt.model_dump(),
        "generation": recipe.generation.model_dump(),
        "routing": recipe.routing.model_dump(),
    }
    return "\n".join("\n".join(_table(name, values)) + "\n" for name, values in tables.items())


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{name}]"
    for key, value in values.items():
        if isinstance(value, tuple):
            yield (
                f"{key} = ["
                + "".join(f"\n  {toml_string(item)}," for item in value)
                + ("\n]" if value else "]")
            )
        elif isinstance(value, str):
            if value:
                yield f"{key} = {toml_string(value)}"
        else:
            yield f"{key} = {value!r}"


def toml_string(text: str) -> str:
    """A TOML basic string."""
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
