"""Small versions of `benchmarks/experiment_truth`: units without an answer, and an arm that is withdrawn."""

from __future__ import annotations

import pytest

from benchmarks.experiment_truth.unserved import LOSSES, simulated, stored
from benchmarks.experiment_truth.withdrawn import pair
from router.experiments.model import Unanswered

pytestmark = pytest.mark.slow
RUNS, UNITS, LOOKS = 12, 20_000, 5


@pytest.mark.parametrize("missing", [Unanswered.EXCLUDED, Unanswered.ZERO])
def test_an_arm_is_not_promoted_for_the_users_whom_it_lost(missing):
    """As they were counted before, it is nearly always."""
    before = simulated(LOSSES[2], missing, False, RUNS, UNITS, LOOKS)
    now = simulated(LOSSES[2], missing, True, RUNS, UNITS, LOOKS)
    assert before["promote"] >= 0.7
    assert (now["promote"] <= 1 / RUNS, now["sample-ratio"]) == (True, 0.0)  # 2.5 % are promised


def test_users_lost_at_random_are_harm():
    assert simulated(LOSSES[1], Unanswered.ZERO, True, RUNS, UNITS, LOOKS)["stop for harm"] >= 0.5


async def test_requests_without_an_answer_reach_the_report_through_the_store(tmp_path):
    found = await stored(tmp_path, 600, 1)
    numbers = {one.arm: one for one in found.numbers}
    (ends,) = numbers["new"].ended
    assert (ends.stage, ends.errors) == ("admission", ends.errors)
    assert ends.errors > 0
    assert sum(one.units for one in found.numbers) == 600
    assert numbers["control"].ended == ()
    (note,) = [text for text in found.notes if text.startswith("requests that ended before")]
    assert f"admission {ends.errors} errors" in note


def test_an_arm_that_is_withdrawn_changes_nothing_for_the_others():
    for seed in range(2):
        found = pair(seed, 0.05, 4000)
        assert found.same
        assert found.same_verdict
        assert not found.alarm
        assert found.naive
