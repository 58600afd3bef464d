"""When a version counts as better."""

from __future__ import annotations

import pytest

from benchmarks.improve import noise
from router.extensions.improve.rule import decide
from router.paired import difference


def compared(changes, groups=None):
    """A comparison as JSON, of changes of -1, 0 or 1."""
    found = difference(changes, [0] * len(changes), groups or range(len(changes)))
    return {"difference": {name: getattr(found, name) for name in ("mean", "low", "high", "p", "rows")}}


GAIN = compared([1] * 20 + [0] * 40)["difference"]
KEPT = compared([0] * 300)


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        ({**compared([1] * 3 + [0] * 57), "by_chance": GAIN}, KEPT, "no gain is shown"),
        ({**compared([-1] * 20 + [0] * 40), "by_chance": GAIN}, KEPT, "no gain is shown"),
        (
            {**compared([1] * 20 + [0] * 40), "by_chance": compared([1, -1] * 10 + [0] * 40)["difference"]},
            KEPT,
            "contradicts itself",
        ),
        (
            {**compared([1] * 20 + [0] * 40), "by_chance": GAIN},
            compared([-1] * 9 + [1] * 5 + [0] * 286),
            "it forgets: −1.3 points",
        ),
    ],
)
def test_version_that_does_not_show_all_three_is_no_better(new, old, why):
    found = decide(new, old, 0.05, 1.0)
    assert not found.better
    assert why in found.why


def test_version_that_gains_and_keeps_is_better():
    new = {**compared([1] * 20 + [0] * 40), "by_chance": GAIN}
    found = decide(new, compared([-1] * 5 + [1] * 3 + [0] * 292), 0.05, 1.0)
    assert found.better
    assert found.why.startswith("+33.3 points (")


def test_random_corrections_pass_the_rule_no_more_often_than_it_says():
    passed = [noise(seed, 1.0) for seed in range(300)]
    assert sum(gain for gain, _ in passed) > 30  # why a gain alone is not enough
    assert sum(gain and chance for gain, chance in passed) <= 15
