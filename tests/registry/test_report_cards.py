"""The rule of the gate, and report cards as it reads them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.format.manifest import MOST_REGRESSIONS, MOST_ROWS, ReportCard, ReportError, parse_report
from router.registry.format.untrusted import REPORT_BYTES
from router.registry.gate import fallen_behind, judge
from tests.registry.cards import card, worse
from tests.registry.tiny import BASE

WEIGHTS = "ab" * 32


def report(**changes: Any) -> ReportCard:
    return parse_report(json.dumps(card(**changes)).encode())


def test_a_gain_that_excludes_zero_passes():
    assert judge(report(gain=0.051), WEIGHTS, BASE).passed


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
    ],
)
def test_what_fails_says_why(given, weights, said, again):
    judgement = judge(given, weights, BASE)
    assert (judgement.passed, judgement.again) == (False, again)
    assert said in judgement.finding


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
def test_surely_worse_is_intervals_apart_on_the_same_data(other, behind):
    assert bool(fallen_behind(report(score=0.8), report(**other))) is behind


def with_rows(rows: Any) -> ReportCard:
    return report(arms={"adapter": {"score": {"value": 0.8, "low": 0.7, "high": 0.9}, "rows": list(rows)}})


def test_five_points_on_the_same_rows_are_seen_where_intervals_overlap():
    random, seen, runs = np.random.default_rng(1), 0, 100
    for _ in range(runs):
        old = (random.random(500) < 0.8).astype(float)
        new = np.where(random.random(500) < 0.0875, 0.0, np.where(random.random(500) < 0.1, 1.0, old))
        seen += bool(fallen_behind(with_rows(new), with_rows(old)))  # 7 % became wrong, 2 % right
    assert seen / runs >= 0.9


def test_equal_versions_are_seldom_told_apart():
    random, seen, runs = np.random.default_rng(2), 0, 300
    for _ in range(runs):
        hardness = random.random(500)
        new, old = ((random.random(500) < hardness).astype(float) for _ in range(2))
        seen += bool(fallen_behind(with_rows(new), with_rows(old)))
    assert seen / runs <= 0.05 + 0.02


def test_rows_of_another_number_are_not_paired():
    assert not fallen_behind(with_rows([0.0] * 40), with_rows([1.0] * 41))


@pytest.mark.parametrize("rows", ["0.5", [0.5, 2], [None], [True], [float("nan")], {}, [1] * (MOST_ROWS + 1)])
def test_rows_that_are_no_scores_are_refused(rows):
    document = card()
    document["arms"]["adapter"]["rows"] = rows
    with pytest.raises(ReportError):
        parse_report(json.dumps(document).encode())


def parsed(document: Any) -> Any:
    return parse_report(json.dumps(document).encode())


def changed(path: str, value: Any) -> dict[str, Any]:
    """A card with the value at `a/b/c` replaced; None takes it out."""
    document = card()
    *parents, last = path.split("/")
    at: Any = document
    for step in parents:
        at = at[step]
    at[last] = value
    if value is None:
        del at[last]
    return document


def test_what_the_gate_decides_on():
    report = parsed(card(score=0.8, gain=0.3))
    assert (report.weights_sha256, report.base_digest) == ("ab" * 32, "ab" * 32)
    assert (report.score.value, report.gain.low, report.worse) == (0.8, 0.25, ())
    assert str(report.gain) == "0.3 (95 % interval 0.25 to 0.35)"


def test_of_the_regressions_only_those_beyond_the_margin_count():
    report = parsed(card(regressions=[worse("a", worse=False), worse("b")]))
    assert [str(entry) for entry in report.worse] == [
        "'b' by 0.3 (95 % interval 0.25 to 0.35), allowed is 0.1"
    ]
    assert parsed(card(regressions=[])).worse == ()


SCORE = "gains/adapter - base/score"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "must be a table"),
        (changed("schema", None), "schema is missing"),
        (changed("schema", 9), "schema 9 must be 2, the only one known here"),
        (changed("schema", True), "schema must be a whole number, is True"),
        (changed("schema", [1]), "schema must be a whole number"),
        (changed("regressions", None), "regressions is missing"),
        (
            changed("adapter/weights_sha256", "abc"),
            r"adapter\.weights_sha256 'abc' must be a sha256 in hex",
        ),
        (changed("adapter", "me"), r"adapter\.weights_sha256 is missing"),
        (changed("base/digest", 7), r"base\.digest must be a string, is 7"),
        (changed("gains", {}), "gains.adapter - base.score is missing"),
        (changed(f"{SCORE}/low", "0.5"), r"score\.low must be a number, is '0\.5'"),
        (changed(f"{SCORE}/low", True), r"score\.low must be a number, is True"),
        (changed(f"{SCORE}/low", 10**400), r"score\.low must be a number, is a huge number"),
        (changed(f"{SCORE}/low", 5), r"low 5 is above high 0\.35"),
        (changed("arms/adapter/score", None), r"arms\.adapter\.score is missing"),
        (card(regressions={}), "regressions must be a list"),
        (card(regressions=[worse()] * (MOST_REGRESSIONS + 1)), "at most 1000"),
        (card(regressions=["x"]), r"regressions\[0\] must be a table"),
        (card(regressions=[worse() | {"worse": "no"}]), r"regressions\[0\]\.worse must be true or false"),
        (card(regressions=[worse() | {"margin": None}]), r"regressions\[0\]\.margin must be a number"),
    ],
)
def test_a_report_that_is_none_is_explained(document, said):
    with pytest.raises(ReportError, match=said):
        parsed(document)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "parts"),
        (b'{"schema": 2, "schema": 2}', "appears twice"),
        (json.dumps(card()).replace("0.25", "NaN").encode(), "NaN is not a JSON number"),
        (json.dumps(card()).replace("0.25", "1e999").encode(), "out of range"),
    ],
)
def test_what_is_not_strict_json_is_refused(data, said):
    with pytest.raises(ReportError, match=said):
        parse_report(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    path=st.sampled_from(["schema", "adapter", "base", "data", "arms", SCORE, "metric"]),
    value=JSON,
)
def test_nothing_else_is_ever_raised(path, value):
    with contextlib.suppress(ReportError):
        assert parsed(changed(path, value)).gain == parsed(card()).gain


def test_the_shipped_limit_holds_a_long_report():
    long = card(samples=[{"prompt": "x" * 400}] * 1_000)
    data = json.dumps(long).encode()
    assert len(data) < REPORT_BYTES
    assert parse_report(data).metric == "exact match"
