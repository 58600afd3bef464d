"""The lint of words finds what it is for, and nothing in other words."""

from __future__ import annotations

import pytest

from tests.words import found_in


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("the owner, or whoever else", False, "whoever"),
        ("class _Lane:", True, "class Lane"),
        ("class Shelf(Catalog):", True, "class Shelf"),
        ("class Shelf:", False, None),
        ("class Shelves:", True, None),
        ("screws and errands_of", True, None),
    ],
)
def test_words_and_class_names_are_found_as_a_whole(text: str, code: bool, word: str | None) -> None:
    assert [found for _, found, _ in found_in(text, code)] == ([word] if word else [])
