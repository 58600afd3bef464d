"""The breaker over made-up time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.isolation import Breaker, BreakerState


def opened() -> Breaker:
    """Five failures at time 0."""
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(0)
    return breaker


def test_opens_after_five_failures_in_a_minute_and_tries_one_after_thirty_seconds() -> None:
    breaker = Breaker()
    for second in range(4):
        breaker.failed(second)
    assert breaker.allow(4)
    breaker.failed(4)
    assert not breaker.allow(33.9)
    assert breaker.allow(34)
    assert not breaker.allow(34)  # one trial only
    breaker.succeeded()
    assert (breaker.state, breaker.allow(34)) == (BreakerState.CLOSED, True)


def test_a_failed_trial_opens_it_for_another_rest() -> None:
    breaker = opened()
    assert breaker.allow(30)
    breaker.failed(31)
    assert not breaker.allow(60)
    assert breaker.allow(61)


def test_a_trial_that_was_never_made_leaves_the_next_one_its_turn() -> None:
    breaker = opened()
    assert breaker.allow(30)
    breaker.abandoned()
    assert breaker.allow(31)


def test_failures_spread_over_more_than_the_window_do_not_open_it() -> None:
    breaker = Breaker()
    for i in range(100):
        breaker.failed(i * 16.0)
        assert breaker.allow(i * 16.0)


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "ask"]), st.floats(0, 50)), max_size=60))
def test_it_never_stays_shut_longer_than_its_rest(events: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for what, pause in events:
        now += pause
        if what == "fail":
            breaker.failed(now)
        elif what == "ok":
            breaker.succeeded()
        elif breaker.allow(now):
            breaker.abandoned()
    assert breaker.allow(now + 30.001)  # a millisecond for rounding
