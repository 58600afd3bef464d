"""Evidence from labels of events, against simulated bandits under drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats.sequences import two_arms
from router.extensions.experiments_bandit.labels import fewer_events, more_events

EPOCHS, UNITS = 48, 100


def bandit(
    rng: np.random.Generator, factor: float, swing: float, realised: bool = False
) -> list[tuple[float, float, float]]:
    """Events by epoch of control and a treatment whose rate is `factor` times as large, under a daily cycle;
    the share follows the outcomes so far."""
    found, share = [], 0.5
    seen = np.ones((2, 2))  # events, units
    for epoch in range(EPOCHS):
        rate = 0.4 * (1 + swing * math.sin(epoch / 24 * 2 * math.pi))
        treated = int(rng.binomial(UNITS, share))
        events = (rng.binomial(UNITS - treated, rate), rng.binomial(treated, min(1.0, factor * rate)))
        found.append((*map(float, events), treated / UNITS if realised else share))
        seen += [[events[0], events[1]], [UNITS - treated, treated]]
        share = 0.9 if seen[0, 1] / seen[1, 1] < seen[0, 0] / seen[1, 0] else 0.1
    return found


def called(factor: float, margin: float, realised: bool = False, runs: int = 120) -> float:
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(runs):
        epochs = [e for e in bandit(rng, factor, 0.75, realised) if 0 < e[2] < 1]
        wrong += any(more_events(epochs[:n], margin) >= math.log(20) for n in range(1, len(epochs) + 1))
    return wrong / runs


@pytest.mark.slow
@pytest.mark.parametrize("realised", [False, True])
def test_equal_rates_that_drift_are_rarely_called_however_shares_move(realised):
    assert called(1.0, 1.0, realised) <= 0.05
    assert called(1.2, 1.2, realised) <= 0.05


def test_plain_counts_would_be_called_again_and_again():
    """The same runs by the exact sequence of two fixed rates."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(300):
        epochs = np.array(bandit(rng, 1.0, 0.75))
        rng_units = np.array([[UNITS * (1 - s), UNITS * s] for s in epochs[:, 2]]).cumsum(axis=0)
        events = epochs[:, :2].cumsum(axis=0)
        arms = [(events[:, i], np.maximum(rng_units[:, i] - events[:, i], 0)) for i in (0, 1)]
        wrong += bool((two_arms(arms[0], arms[1]) >= math.log(20)).any())
    assert wrong / 300 > 0.05


def test_harm_is_found():
    rng = np.random.default_rng(1)
    assert more_events(bandit(rng, 2.0, 0.5)) > math.log(20)
    assert more_events(bandit(rng, 2.0, 0.5), margin=2.0) < math.log(20)
    assert fewer_events(bandit(rng, 0.5, 0.5)) > math.log(20)


def test_one_label_by_hand():
    found = more_events([(0.0, 1.0, 0.5)])
    expected = np.mean([2 * r / (1 + r) for r in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)])
    assert found == pytest.approx(math.log(expected))
    assert more_events([]) == 0
    assert fewer_events([(3.0, 1.0, 0.2)]) == pytest.approx(more_events([(1.0, 3.0, 0.8)]))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="share"):
        more_events([(1.0, 1.0, 1.0)])
