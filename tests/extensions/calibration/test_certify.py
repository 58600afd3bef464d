"""The guarantee, simulated: it holds as often as it says, where a naive threshold does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from router.extensions.calibration.certify import (
    THRESHOLDS,
    Goal,
    best_supported,
    binomial_tail,
    loosest_proven,
    times_needed,
    try_candidates,
    upper_bound,
)
from router.extensions.calibration.rows import Choice, DataRow, RoutedRow

GOAL = Goal()
WORLDS = 250


def drawn(
    rng: np.random.Generator, count: int, error: Callable[[float], float], label: str = "legal"
) -> list[RoutedRow]:
    """Requests for legal, each with a confidence of its own, that go wrong as often as `error` of it says."""
    rows = []
    for number, confidence in enumerate(rng.beta(3, 1, count)):
        wrong = rng.random() < error(confidence)
        choice = Choice(float(confidence), "medical" if wrong else "legal", "words")
        rows.append(RoutedRow(DataRow(f"{number}", label), (choice,)))
    return rows


def true_error(error: Callable[[float], float], threshold: float) -> float:
    """Of what is routed at that threshold."""
    there = np.random.default_rng(1).beta(3, 1, 200_000)
    return float(np.mean([error(c) for c in there[there >= threshold]]))


def naive(tested: list) -> list[float]:
    """Thresholds whose own bound is within the target."""
    return [one.threshold for one in tested if one.error_bound <= GOAL.target]


@pytest.mark.slow
def test_nothing_is_proven_where_every_threshold_errs_above_the_target() -> None:
    """So any proof is wrong, which may happen in 5 of 100 worlds."""
    rng = np.random.default_rng(4)
    proven = naively = 0
    for _ in range(WORLDS):
        tested = try_candidates(drawn(rng, 250, lambda c: 0.0501), [], GOAL)
        proven += loosest_proven(tested) is not None
        naively += bool(naive(tested))
    deviation = (WORLDS * GOAL.delta * (1 - GOAL.delta)) ** 0.5
    assert proven <= WORLDS * GOAL.delta + 2 * deviation
    assert naively > WORLDS * GOAL.delta + 3 * deviation


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [lambda c: 0.22 * (1 - c), lambda c: 0.15 if c > 0.99 else 0.15 * (1 - c)],
    ids=["usual", "wrongly sure"],
)
def test_the_threshold_taken_keeps_the_promise(error: Callable[[float], float]) -> None:
    rng = np.random.default_rng(5)
    true = {threshold: true_error(error, threshold) for threshold in THRESHOLDS}
    broken = proven = 0
    for _ in range(WORLDS):
        taken = loosest_proven(try_candidates(drawn(rng, 600, error), [], GOAL))
        proven += taken is not None
        broken += taken is not None and true[taken.threshold] > GOAL.target
    assert broken <= GOAL.delta * WORLDS
    assert proven > WORLDS / 2  # it is no guarantee by refusing


def test_strict_candidates_that_route_too_few_do_not_end_it() -> None:
    rows = [RoutedRow(DataRow(f"{n}", "legal"), (Choice(0.9, "legal"),)) for n in range(200)]
    tested = try_candidates(rows, [], GOAL)
    assert tested[0].routed == 0
    assert not tested[0].proven
    assert (taken := loosest_proven(tested)) is not None
    assert (taken.threshold, taken.routed, taken.strange_bound) == (THRESHOLDS[-1], 200, None)


def test_strange_requests_stop_a_threshold_as_errors_do() -> None:
    rows = [RoutedRow(DataRow(f"{n}", "legal"), (Choice(0.9, "legal"),)) for n in range(200)]
    strange = [RoutedRow(DataRow(f"s{n}", ""), (Choice(0.5, "legal"),)) for n in range(200)]
    taken = loosest_proven(try_candidates(rows, strange, GOAL))
    assert taken is not None
    assert taken.threshold == min(t for t in THRESHOLDS if t > 0.5)
    assert taken.strange_routed == 0
    assert loosest_proven(try_candidates(rows, strange[:50], GOAL)) is None  # too few to prove it


def test_what_is_not_proven_has_a_best_and_a_number_of_requests() -> None:
    rng = np.random.default_rng(6)
    rows = drawn(rng, 60, lambda c: 0.01)
    tested = try_candidates(rows, [], GOAL)
    assert loosest_proven(tested) is None
    found = best_supported(tested, 0, GOAL)
    assert found is not None
    best, reached = found
    assert GOAL.target < reached.target < 0.3
    assert reached.target >= upper_bound(best.errors, best.routed, GOAL.delta / len(tested))
    times = times_needed(tested, 0, GOAL)
    assert times is not None
    assert 1 < times < 5
    assert loosest_proven(try_candidates(rows * math.ceil(times), [], GOAL)) is not None
    hopeless = try_candidates(drawn(rng, 200, lambda c: 0.3), [], GOAL)
    assert times_needed(hopeless, 0, GOAL) is None
    nothing = try_candidates([RoutedRow(DataRow("a", "legal"), ())], [], GOAL)
    assert best_supported(nothing, 0, GOAL) is None


# -- bounds


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.001, 0.01, 0.05, 0.2]))
def test_bounds_are_those_of_scipy(errors: int, more: int, delta: float) -> None:
    count = errors + more
    expected = beta.ppf(1 - delta, errors + 1, count - errors)
    assert upper_bound(errors, count, delta) == pytest.approx(expected, rel=1e-6)


def test_nothing_seen_and_all_wrong() -> None:
    assert upper_bound(0, 0, 0.05) == upper_bound(7, 7, 0.05) == 1.0
    assert upper_bound(0, 59, 0.05) == pytest.approx(0.04950761, abs=1e-8)
    assert upper_bound(500, 100_000, 0.05) == pytest.approx(0.00538273, abs=1e-8)


@given(st.integers(0, 40), st.integers(1, 40), st.floats(0.001, 0.999))
def test_the_tail_is_the_exact_sum(errors: int, count: int, rate: float) -> None:
    exact = Fraction(rate)
    total = sum(comb(count, k) * exact**k * (1 - exact) ** (count - k) for k in range(min(errors, count) + 1))
    assert binomial_tail(errors, count, rate) == pytest.approx(float(total), rel=1e-9, abs=1e-300)
