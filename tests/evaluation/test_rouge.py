from __future__ import annotations

import pytest

from router.evaluation.metrics import Task
from router.evaluation.scoring import METRICS, lead, rouge
from router.training.data import Row


def test_rouge_by_hand() -> None:
    longest, words = rouge("driver for the display", "display driver for X")
    assert longest == pytest.approx(2 * (2 / 4) * (2 / 4) / (2 / 4 + 2 / 4))  # "driver for"
    assert words == pytest.approx(3 / 4)
    assert rouge("", "display driver") == (0, 0)


def test_lead_is_the_first_sentence() -> None:
    assert lead(" Version 2.0 is here. It is faster.") == "Version 2.0 is here."
    assert lead("no end") == "no end"


def test_references_need_the_bare_text() -> None:
    references = METRICS["rouge_l"].references
    text = " ".join(f"w{place}" for place in range(20)) + ". Second."
    named = references(Task("rouge_l", [Row("p", "r", "f:1", text)], (), 8))
    assert named["the first 12 words"] == [" ".join(f"w{place}" for place in range(12))]
    assert named["the first sentence"] == [text.removesuffix(" Second.")]
    assert references(Task("rouge_l", [Row("p", "r", "f:1")], (), 8)) == {}
