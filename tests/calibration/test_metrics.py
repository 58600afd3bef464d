"""Measures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.evaluation import (
    area_under,
    auroc,
    bootstrap_interval,
    confusion_table,
    coverage_at,
    ece,
    macro_f1,
    risk_coverage,
)


def test_macro_f1() -> None:
    truth, said = ["a", "a", "b", "b"], ["a", "b", "b", "c"]
    assert macro_f1(truth, said, ["a", "b"]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert macro_f1(truth, said, ["z"]) == 0
    assert confusion_table(truth, said, ["a", "b", "c"]) == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_ece() -> None:
    confidence = np.array([0.9] * 10 + [0.6] * 10)
    right = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False] * 4)
    assert ece(confidence, right, bins=2) == pytest.approx(0.05)
    assert ece(np.array([]), np.array([])) == 0


def test_the_interval_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda drawn: float(values[drawn].mean()), 400)
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 / 20, rel=0.2)  # two standard errors to each side


def test_auroc() -> None:
    assert auroc(np.array([0.9, 0.4]), np.array([0.1, 0.4])) == pytest.approx(3.5 / 4)
    assert auroc(np.array([1.0]), np.array([0.0])) == 1


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auroc_counts_pairs(strange: list[int], known: list[int]) -> None:
    pairs = [(s > k) + 0.5 * (s == k) for s in strange for k in known]
    assert auroc(np.array(strange), np.array(known)) == pytest.approx(sum(pairs) / len(pairs))


def test_risk_and_coverage() -> None:
    confidence, right = np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, True, False, False])
    curve = risk_coverage(confidence, right)
    assert curve == [(0.9, 0.25, 0.0), (0.8, 0.75, pytest.approx(1 / 3)), (0.1, 1.0, 0.5)]
    assert coverage_at(curve, 0.4) == 0.75
    assert coverage_at(curve[1:], 0.01) == 0
    assert area_under(curve) == pytest.approx(0.5 / 3 + 0.25 * 0.5)
    assert risk_coverage(np.array([]), np.array([], bool)) == []
