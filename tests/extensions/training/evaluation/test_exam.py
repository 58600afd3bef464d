"""The rows that are asked."""

from __future__ import annotations

from typing import Any

from router.extensions.training.evaluation.exam import draw_rows


def test_draw_is_fixed_and_without_repetition() -> None:
    rows: Any = list(range(50))
    assert draw_rows(rows, None) == rows
    assert draw_rows(rows, 10) == draw_rows(rows, 10)
    assert len(set(draw_rows(rows, 10))) == 10
