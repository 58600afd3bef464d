"""Small versions of the sections `interference` and `tenants`, with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.experiment_truth import interference, tenants

pytestmark = pytest.mark.slow
NAMES = interference.METRICS


def test_a_split_sees_nothing_of_a_queue_and_a_switchback_nearly_all():
    truth = interference.rolled_out(interference.EVEN, 12 * 3600.0, runs=8)
    real = {name: new - old for name, (old, new) in truth.items()}
    longer = np.array([[1.0, interference.LONGER]] * 20)
    split = interference.served(interference.EVEN, 3600.0, longer, 20, 11, split=True)
    old, new = split.means("time_to_first_token").T
    assert abs((new - old).mean()) < 0.02 * real["time_to_first_token"]
    assert (new <= 1.1 * old).all()
    found = interference.switchback(interference.EVEN, 1800.0, 14, interference.LONGER, 20, 1)
    for name in NAMES:
        effects, p = found[name]
        assert effects.mean() >= 0.8 * real[name]
        assert (p <= 0.05).mean() >= 0.8


def test_a_switchback_of_equal_arms_shows_nothing():
    found = interference.switchback(interference.EQUAL[1], 300.0, 14, 1.0, 200, 3)
    assert all((p <= 0.05).mean() <= 0.08 for _, p in found.values())


@pytest.mark.parametrize("metric", tenants.METRICS)
def test_few_unlike_tenants_are_called_different_no_more_often_than_promised(metric):
    found = tenants.called(tenants.METRICS[metric](np.random.default_rng(5), 400, 12), 0.0)
    assert (found[tenants.REPORTED] <= 0.05).mean() <= 0.05 + 1.96 * (0.05 * 0.95 / 400) ** 0.5
