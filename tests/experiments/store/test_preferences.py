"""What people preferred in blind comparisons, in the store of dicts and in the database."""

from __future__ import annotations

from dataclasses import replace

from router.experiments.model import Preference
from router.experiments.store.series import PairCounts, PreferenceCounts

OLD, NEW = "medical@1.0.0", "medical@1.1.0"


def one(response: str, result: int, unit: str = "anna", **more: object) -> Preference:
    made = Preference(OLD, NEW, response, 1.0, result, unit)
    return replace(made, **more)


def test_a_person_counts_once_and_an_answer_is_compared_once(store):
    for i in range(8):
        assert store.prefer(one(f"a{i}", 1))
    assert store.prefer(one("b0", -1, "ben"))
    assert store.prefer(one("b1", 0, "ben", both_bad=True))
    assert not store.prefer(one("b1", 1, "ben"))
    assert store.prefer(one("base", 1, first="base"))
    assert store.preferred() == (
        PreferenceCounts("base", NEW, PairCounts(1, 0, 0, 1, 1.0), 0),
        PreferenceCounts(OLD, NEW, PairCounts(8, 1, 1, 2, 1.0), 1),
    )


def test_nothing_is_preferred_yet(store):
    assert store.preferred() == ()
