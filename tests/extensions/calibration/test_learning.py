"""Which additions are kept."""

from __future__ import annotations

import pytest

from router.extensions.calibration.learning import Score


def score(right: int, wrong: int, requests: int = 300) -> Score:
    return Score(requests=requests, right=right, wrong=wrong, routed=0, meant=0, forced=0)


@pytest.mark.parametrize(
    ("requests", "right", "wrong", "harmed"),
    [
        *((300, 197, 10, False), (300, 196, 10, True), (300, 200, 13, False), (300, 200, 14, True)),
        *((99, 199, 10, True), (99, 200, 11, True), (99, 200, 10, False)),
    ],
)
def test_one_in_a_hundred_may_change_by_chance(requests: int, right: int, wrong: int, harmed: bool) -> None:
    assert score(200, 10, requests).harmed_by(score(right, wrong, requests)) is harmed
