"""The table of fields in docs/http.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.extensions.openai import fields, requests

PAGE = Path(__file__).parents[3] / "docs" / "http.md"
KINDS = {"chat": requests.ChatCompletion, "plain": requests.Completion}


def rows() -> Iterator[tuple[list[str], dict[str, str]]]:
    """Each row: the fields, and what happens to them in each kind of completion."""
    table = PAGE.read_text().partition("| field | chat | plain |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        names, chat, plain, _ = (cell.strip() for cell in line.strip("|").split("|", 3))
        yield re.findall(r"`(\w+)`", names), {"chat": chat, "plain": plain}


def forms(kind: type[requests.CompletionFields]) -> dict[str, str]:
    """What the code does with each field."""
    works = [name for name, one in kind.model_fields.items() if one.annotation is not type(None)]
    return {
        **dict.fromkeys(fields.names_of(kind), "refused"),
        **dict.fromkeys(works, "works"),
        **dict.fromkeys(kind.rules.ignored, "ignored"),
        **dict.fromkeys(kind.rules.refused, "refused"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_every_field_and_its_form(kind: str) -> None:
    told = {name: form[kind] for names, form in rows() for name in names if form[kind]}
    assert told == forms(KINDS[kind])
