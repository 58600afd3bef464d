from __future__ import annotations

import json
from typing import Any

import pytest

from router.registry.gate.judging import Report, Standing, fallen_behind, judge, parse_report
from tests.registry.gate.cards import card, worse
from tests.registry.tiny import BASE

WEIGHTS = "ab" * 32


def report(**changes: Any) -> Report:
    return parse_report(json.dumps(card(**changes)).encode())


def test_a_gain_that_excludes_zero_passes() -> None:
    assert judge(report(gain=0.051), WEIGHTS, BASE).standing is Standing.PASSED


@pytest.mark.parametrize(
    ("given", "weights", "said", "again"),
    [
        (None, WEIGHTS, "no report.json", True),
        ("not JSON", WEIGHTS, "report.json: not JSON", True),
        (
            report(gain=0.05),
            WEIGHTS,
            "its gain over the base, 0.05 (95 % interval 0 to 0.1), does not exclude",
            False,
        ),
        (report(gain=-0.3), WEIGHTS, "does not exclude zero", False),
        (
            report(regressions=[worse()] * 2),
            WEIGHTS,
            "'loss on legal rows' by 0.3 (95 % interval 0.25 to",
            False,
        ),
        (report(), "cd" * 32, "about other weights: sha256 abababababab, these have cdcdcdcdcdcd", True),
        (
            report(base={"model": "other", "digest": "x"}),
            WEIGHTS,
            "measured on another base: 'other' with",
            True,
        ),
        (report(gain=-1), "", "does not exclude zero", False),  # known without the weights
    ],
)
def test_what_fails_says_why(given: Report | str | None, weights: str, said: str, again: bool) -> None:
    judgement = judge(given, weights, BASE)
    assert (judgement.standing, judgement.again) == (Standing.FAILED, again)
    assert said in judgement.finding


def test_before_the_weights_were_read_nothing_passes() -> None:
    assert judge(report(), "", BASE).standing is Standing.PENDING


@pytest.mark.parametrize(
    ("other", "behind"),
    [
        ({"score": 0.95}, True),  # 0.75..0.85 against 0.90..1.00
        ({"score": 0.9}, False),  # touching
        ({"score": 0.7}, False),
        ({"score": 0.95, "metric": "chrf"}, False),  # other metric, other test data: nothing is known
        ({"score": 0.95, "data": {"sha256": "ef" * 32}}, False),
    ],
)
def test_surely_worse_is_intervals_apart_on_the_same_data(other: dict[str, Any], behind: bool) -> None:
    assert fallen_behind(report(score=0.8), report(**other)) is behind
