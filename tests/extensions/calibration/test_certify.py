"""The guarantee, simulated: it holds as often as it says, where a naive threshold does not."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import CalibrationError
from router.calibration.targets import Goal, passes
from router.extensions.calibration.cascade import Run, outcome_at
from router.extensions.calibration.certify import (
    NOVELTIES,
    THRESHOLDS,
    binomial_tail,
    binomial_tails,
    candidates_in_order,
    certify,
    require_enough,
    rows_needed,
    sweep,
    try_candidate,
    upper_bound,
)
from router.extensions.calibration.fit import fit_stops

pytestmark = pytest.mark.slow

STOPS = (0.9, 1.01)
GOAL = Goal()


def drawn(rng: np.random.Generator, rows: int, strange: bool = False) -> Run:
    """Two stages, the second knows more; both are wrongly sure, and strange requests are never right."""
    known = np.stack([rng.beta(2, 2, rows), rng.beta(8, 1, rows)], axis=1)
    if strange:
        known = rng.beta(2, 3, (rows, 2))
    right = (rng.random((rows, 1)) < known**0.4) & (not strange)
    novelty = rng.beta(3, 2, (rows, 2)) if strange else rng.beta(1, 4, (rows, 2))
    return Run(np.zeros((rows, 2), np.int64), 1 - (1 - known) ** 2, novelty, right)


def test_the_bounds_hold_in_95_of_100_calibrations() -> None:
    """100 calibrations of classifiers that are wrongly sure, judged on 4 000 fresh requests each."""
    rng = np.random.default_rng(1)
    population, outside = drawn(rng, 4_000), drawn(rng, 4_000, strange=True)
    held = wrong_naively = proven = 0
    for _ in range(100):
        fitting = drawn(rng, 150), drawn(rng, 100, strange=True)
        testing = drawn(rng, 300), drawn(rng, 200, strange=True)
        wrong_naively += true_error(population, naive(testing[0])) > GOAL.target
        try:
            step, _ = certify(fitting, testing, stops := fit_stops(fitting[0], GOAL), GOAL)
        except CalibrationError:
            held += 1  # nothing is claimed
            continue
        proven += 1
        there = outcome_at(population, stops, step.threshold, step.novelty_limit)
        away = outcome_at(outside, stops, step.threshold, step.novelty_limit)
        held += there.errors <= GOAL.target * there.count and away.count <= GOAL.ood_target * 4_000
    assert held >= 0.95 * 100
    assert proven > 0.4 * 100  # it is no guarantee by refusing
    assert wrong_naively > 0.3 * 100


def naive(run: Run) -> float:
    """The lowest threshold whose error on these very rows is within the target."""
    kept = [t for t in THRESHOLDS if (there := outcome_at(run, STOPS, t, 1.0)).errors <= 0.05 * there.count]
    return min(kept)


def true_error(population: Run, threshold: float) -> float:
    there = outcome_at(population, STOPS, threshold, 1.0)
    return there.errors / max(1, there.count)


def test_the_step_taken_passes_and_the_next_one_does_not() -> None:
    rng = np.random.default_rng(3)
    fitting, testing = (drawn(rng, 300), drawn(rng, 0)), (drawn(rng, 600), drawn(rng, 0))
    step, tested = certify(fitting, testing, STOPS, GOAL)
    assert step.error_bound == upper_bound(step.errors, step.routed, 0.05) <= 0.05
    assert step == [s for s in tested if passes(s, GOAL)][-1]
    assert not passes(tested[-1], GOAL) or tested[-1].threshold == THRESHOLDS[-1]
    assert [s.routed for s in tested] == sorted(s.routed for s in tested)


def test_a_looser_threshold_routes_no_less() -> None:
    run = drawn(np.random.default_rng(5), 500)
    counts = [outcome_at(run, STOPS, t, 1.0).count for t in THRESHOLDS]
    assert counts == sorted(counts)
    limits = [outcome_at(run, STOPS, 0.5, n).count for n in NOVELTIES]
    assert limits == sorted(limits)


def test_the_sweep_is_the_outcome_at_every_pair() -> None:
    run = drawn(np.random.default_rng(5), 200)
    thresholds, limits = THRESHOLDS[::9], NOVELTIES[::9]
    found = sweep(run, STOPS, thresholds, limits)
    for i, threshold in enumerate(thresholds):
        for j, limit in enumerate(limits):
            there = outcome_at(run, STOPS, threshold, limit)
            assert (found.routed[i, j], found.errors[i, j]) == (there.count, there.errors)


def test_the_order_goes_from_safe_to_more_routed() -> None:
    rng = np.random.default_rng(5)
    fitting = drawn(rng, 300), drawn(rng, 200, strange=True)
    pairs = candidates_in_order(fitting, (600, 400), STOPS, GOAL)
    counts = [outcome_at(fitting[0], STOPS, *pair).count for pair in pairs]
    assert len(pairs) > 3
    assert counts == sorted(set(counts))


def test_too_few_requests_say_how_many_are_needed() -> None:
    with pytest.raises(CalibrationError, match=r"at least 59 .* give 89 or more"):
        require_enough(58, 0, GOAL)
    with pytest.raises(CalibrationError, match=r"out-of-distribution .* at least 59"):
        require_enough(59, 58, GOAL)
    with pytest.raises(CalibrationError, match="at least 299"):
        require_enough(100, 0, Goal(target=0.01))
    require_enough(59, 59, GOAL)


def test_classifiers_that_are_no_good_get_no_threshold() -> None:
    rng = np.random.default_rng(0)
    hopeless = drawn(rng, 300)
    hopeless.right[:] = rng.random((300, 1)) < 0.7
    with pytest.raises(CalibrationError, match="no threshold keeps the error under 5%"):
        certify((hopeless, drawn(rng, 0)), (hopeless, drawn(rng, 0)), STOPS, GOAL)


def test_strange_requests_that_look_known_get_no_threshold() -> None:
    rng = np.random.default_rng(0)
    sure = Run(
        np.zeros((300, 2), np.int64), np.full((300, 2), 0.999), np.zeros((300, 2)), np.ones((300, 2), bool)
    )
    with pytest.raises(CalibrationError, match="keeps out-of-distribution requests away"):
        certify((sure, sure), (sure, sure), STOPS, GOAL)
    assert try_candidate((sure, drawn(rng, 0)), STOPS, 0.9, 1.0, GOAL).strange_bound == 0.0


RATES = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("errors", "count", "delta", "bound"),
    [
        # scipy.stats.beta.ppf(1 - delta, errors + 1, count - errors), SciPy 1.16
        (0, 59, 0.05, 0.04950761),
        (0, 1, 0.05, 0.95),
        (1, 93, 0.05, 0.04999398),
        (5, 100, 0.05, 0.10225338),
        (3, 50, 0.1, 0.12875642),
        (50, 1000, 0.05, 0.0628634),
        (500, 100_000, 0.05, 0.00538273),
    ],
)
def test_known_values(errors: int, count: int, delta: float, bound: float) -> None:
    assert upper_bound(errors, count, delta) == pytest.approx(bound, abs=1e-8)


@given(st.integers(0, 40), st.integers(1, 40), RATES)
def test_the_tail_is_the_exact_sum(errors: int, count: int, rate: float) -> None:
    exact = Fraction(rate)
    total = sum(comb(count, k) * exact**k * (1 - exact) ** (count - k) for k in range(min(errors, count) + 1))
    assert binomial_tail(errors, count, rate) == pytest.approx(float(total), rel=1e-9, abs=1e-300)


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_lies_where_the_tail_is_delta(errors: int, count: int, delta: float) -> None:
    bound = upper_bound(min(errors, count), count, delta)
    assert min(errors, count) / count <= bound <= 1
    if errors < count:
        assert binomial_tail(errors, count, bound) == pytest.approx(delta, rel=1e-6)


@given(st.integers(0, 200), st.integers(1, 200))
def test_more_errors_bound_higher_and_more_requests_lower(errors: int, more: int) -> None:
    count = errors + more
    bound = upper_bound(errors, count, 0.05)
    assert upper_bound(errors + 1, count, 0.05) >= bound
    assert upper_bound(errors, count + 1, 0.05) <= bound
    assert upper_bound(errors, count, 0.1) <= bound


def test_how_many_are_needed() -> None:
    assert [rows_needed(0.05, 0.05, errors) for errors in range(4)] == [59, 93, 124, 153]
    assert rows_needed(0.01, 0.05) == 299


@given(st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.integers(0, 10))
def test_what_is_needed_is_enough_and_one_less_is_not(target: float, delta: float, errors: int) -> None:
    count = rows_needed(target, delta, errors)
    assert upper_bound(errors, count, delta) <= target + 1e-12
    assert upper_bound(errors, count - 1, delta) > target


def test_nothing_seen_and_all_wrong() -> None:
    assert upper_bound(0, 0, 0.05) == upper_bound(7, 7, 0.05) == 1.0
    assert binomial_tails(20, 0.3).tolist() == pytest.approx([binomial_tail(k, 20, 0.3) for k in range(21)])


# -- another target for a calibration that is there
