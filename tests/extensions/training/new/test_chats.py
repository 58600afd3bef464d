"""Chat rows as columns."""

from __future__ import annotations

import pytest

from router.errors import ConfigError
from router.extensions.training.new.rows import LATER, PROMPT, RESPONSE, SYSTEM, unfolded


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in pairs]


def columns(row: dict[str, object]) -> tuple[str, str, str, str]:
    found = unfolded(row, "x:1")
    return found[SYSTEM], found[PROMPT], found[RESPONSE], found[LATER]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": turns(("user", "q"), ("assistant", "a"))}, ("", "q", "a", "")),
        (
            {"messages": turns(("system", "s"), ("user", "q"), ("assistant", "a"))},
            ("s", "q", "a", ""),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            ("s", "q", "a", ""),
        ),
        (
            {"messages": turns(("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2"))},
            ("", "q", "a", "1"),
        ),
        ({"messages": turns(("assistant", "hello"), ("user", "q"), ("assistant", "a"))}, ("", "q", "a", "")),
        (
            {"messages": turns(("user", "q"), ("user", "more"), ("assistant", "a"))},
            ("", "q\n\nmore", "a", ""),
        ),
        ({"messages": turns(("user", "q"), ("tool", "a"))}, ("", "q", "", "")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, ("", "q", "", "")),
    ],
)
def test_the_first_request_and_its_answer(row: dict[str, object], expected: tuple[str, ...]) -> None:
    assert columns(row) == expected


def test_other_columns_stay() -> None:
    found = unfolded({"messages": turns(("user", "q"), ("assistant", "a")), "id": 3}, "x:1")
    assert found["id"] == 3
    assert "messages" not in found


@pytest.mark.parametrize("value", ["text", [], ["a"], [{"x": 1}], None, 3])
def test_what_is_no_chat_is_a_column_like_others(value: object) -> None:
    assert unfolded({"messages": value}, "x:1") == {"messages": value}


def test_a_picture_is_refused_naming_the_place() -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
    with pytest.raises(ConfigError, match=r"x:1: messages\[0\] holds other parts than text"):
        unfolded(row, "x:1")
