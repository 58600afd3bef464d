"""As many outcomes of nothing as may wait, and no more; what belongs to something is always kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.experiments.model import Accepted
from router.experiments.store import store as waiting
from router.experiments.store.store import ExperimentStore, WaitingRows
from tests.experiments.store.helpers import experiment, exposed, outcome, row, unit_outcome

COUNTED, UNKNOWN, NOT_KEPT = Accepted.COUNTED, Accepted.UNKNOWN, Accepted.NOT_KEPT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bounded(url, clock):
    """A store in which three outcomes may wait, with a running experiment."""
    found = ExperimentStore(url, max_waiting=3)
    found._waiting = WaitingRows(3, clock)
    found.create(experiment())
    yield found
    found.close()


def test_the_last_are_turned_away_and_those_of_something_are_kept(bounded):
    bounded.expose([exposed("u", "r")])
    outcomes = [
        outcome("n1"),
        outcome("r"),
        unit_outcome("nobody"),
        outcome("n2"),
        outcome("n3"),
        unit_outcome("u"),
        unit_outcome("nobody"),
    ]
    assert bounded.record(outcomes) == (UNKNOWN, COUNTED, UNKNOWN, UNKNOWN, NOT_KEPT, COUNTED, NOT_KEPT)
    assert bounded.record([outcome("n4"), outcome("r")]) == (NOT_KEPT, COUNTED)
    assert row(bounded) == (1, 1.0)


def test_one_that_was_turned_away_may_come_again(bounded, clock):
    late = outcome("n4", key="k")
    assert bounded.record([outcome("n1"), outcome("n2"), outcome("n3"), late, late])[3:] == (
        NOT_KEPT,
        NOT_KEPT,
    )
    assert bounded.record([late]) == (NOT_KEPT,)
    bounded.expose([exposed("u", "n1")])  # whose outcome waits no more
    clock.now += waiting.FULL_SECONDS
    assert bounded.record([late, replace(late, key="l")]) == (UNKNOWN, NOT_KEPT)
    bounded.expose([exposed("v", "n4")])
    assert bounded.record([late]) == (Accepted.DUPLICATE,)


def test_rows_of_others_are_found_now_and_then(bounded, clock, url):
    assert bounded.record([outcome("n1")]) == (UNKNOWN,)
    other = ExperimentStore(url)
    assert set(other.record([outcome(f"o{i}") for i in range(5)])) == {UNKNOWN}
    other.close()
    assert bounded.record([outcome("n2")]) == (UNKNOWN,)
    clock.now += waiting.COUNT_SECONDS
    assert bounded.record([outcome("n3")]) == (NOT_KEPT,)


def test_a_store_that_is_opened_anew_knows_what_waits(bounded, url):
    bounded.record([outcome("n1"), outcome("n2")])
    again = ExperimentStore(url, max_waiting=3)
    assert again.record([outcome("n3"), outcome("n4")]) == (UNKNOWN, NOT_KEPT)
    again.close()
