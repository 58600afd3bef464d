"""Text from untrusted files, on one short line."""

from __future__ import annotations

import pytest

from router.registry.format.text import show, some

UNTRUSTED: list[object] = [
    "\n\x1b[31m",
    "\ud800",
    10**5000,
    "x" * 9999,
    [1] * 99,
    {"a": 1},
    float("nan"),
    b"\xff",
]


@pytest.mark.parametrize("value", UNTRUSTED, ids=range(len(UNTRUSTED)))
def test_untrusted_values_are_shown_on_one_short_line(value: object) -> None:
    text = show(value)
    assert text.isprintable()
    assert len(text) <= 90
    text.encode()


def test_some_names() -> None:
    assert some(["a"]) == "'a'"
    assert some("abcde") == "'a', 'b', 'c' and 2 more"
