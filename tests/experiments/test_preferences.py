"""Blind comparisons: what they say, and that one eager person does not decide."""

from __future__ import annotations

from router.experiments.preferences import compared
from router.experiments.store.series import PairCounts, PreferenceCounts

OLD, NEW = "medical@1.0.0", "medical@1.1.0"


def test_the_version_that_is_preferred_comes_first():
    found = compared(PreferenceCounts(NEW, OLD, PairCounts(40, 85, 6, 125, 40.0), 2))
    assert (found.version, found.other) == (NEW, OLD)
    assert found.text == "preferred in 85 of 125 comparisons without a tie (53 to 81 %)"
    assert (found.reading, found.ties) == ("✓ preferred", "6 ties, 2 of them bad")


def test_one_eager_person_does_not_decide():
    found = compared(PreferenceCounts(OLD, NEW, PairCounts(500, 0, 0, 1, 1.0)))
    assert found.reading == "? not clear yet"
    assert found.text.endswith("every person counts the same)")
