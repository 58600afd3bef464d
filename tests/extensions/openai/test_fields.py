"""docs/http.md names every field that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.extensions.openai import fields, requests

PAGE = (Path(__file__).parents[3] / "docs" / "http.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("\n## Fields\n")[2].partition("\n### ")[0]


@pytest.mark.parametrize("kind", [requests.ChatCompletion, requests.Completion])
def test_every_field_that_works_is_told(kind: type[requests.CompletionFields]) -> None:
    gone = {name for name, one in kind.model_fields.items() if one.annotation is type(None)}
    assert [name for name in {*fields.names_of(kind)} - gone if f"`{name}`" not in TABLE] == []
