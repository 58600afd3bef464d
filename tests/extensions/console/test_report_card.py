"""Report cards as they are, and as somebody may have made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.extensions.console.report_card import MOST_CHARS, MOST_ROWS, card_of

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(path.parent.name for path in (ROOT / "adapters").glob("*/report.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_cards_that_ship_are_shown(name: str) -> None:
    data = (ROOT / "adapters" / name / "report.json").read_bytes()
    card, report = card_of(data), json.loads(data)
    assert card is not None
    assert (card.metric, card.rows) == (report["metric"], report["data"]["asked"])
    assert [arm["title"] for arm in card.arms] == ["base", "base with examples", "adapter"]
    assert card.arms[-1]["score"].value == report["arms"]["adapter"]["score"]["value"]
    assert all(0 <= arm["part"] <= 1 for arm in card.arms)
    assert card.gains[0][1].value == report["gains"]["adapter - base"]["score"]["value"]
    assert card.samples
    assert len(card.splits) == 3


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_card(data: bytes | None) -> None:
    assert card_of(data) is None


def test_what_is_huge_is_cut() -> None:
    samples = [{"prompt": "x" * 5000, "gold": 7}] * 500
    card = card_of(json.dumps({"samples": samples, "scale": 1e300, "metric": ["no text"]}).encode())
    assert card is not None
    assert len(card.samples) == MOST_ROWS
    assert len(card.samples[0]["prompt"]) == MOST_CHARS
    assert (card.samples[0]["gold"], card.metric) == ("", "")


NAMES = (
    *("arms", "base", "adapter", "score", "value", "low", "high", "gains", "adapter - base", "scale", "sets"),
    *("generalization", "bias", "rows", "samples", "splits", "train", "loss", "data"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_whatever_a_card_says_it_is_shown_or_left_out(report: dict[str, Any]) -> None:
    card = card_of(json.dumps(report).encode())
    assert card is not None
    for arm in card.arms:
        assert str(arm["score"]), arm["score"].interval
