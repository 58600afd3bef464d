"""Sessions of browsers: they end, their number is bounded, and one client ends no session of another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from router.extensions.console.guard import IDLE_SECONDS, LONGEST_SECONDS, MOST, MOST_OF_TOKEN, Sessions


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def sessions(clock: SimpleNamespace) -> Sessions:
    return Sessions(lambda: clock.now)


def test_an_id_is_random_and_stands_for_its_token(sessions: Sessions) -> None:
    ids = {sessions.begin("a") for _ in range(MOST_OF_TOKEN)}
    assert len(ids) == MOST_OF_TOKEN
    assert all(len(one) == 43 and sessions.token(one) == "a" for one in ids)
    assert (sessions.token(""), sessions.token("a")) == ("", "")


def test_one_that_is_not_used_ends(sessions: Sessions, clock: SimpleNamespace) -> None:
    one = sessions.begin("a")
    clock.now += IDLE_SECONDS - 1
    assert sessions.token(one) == "a"
    clock.now += IDLE_SECONDS
    assert (sessions.token(one), len(sessions)) == ("", 0)


def test_one_that_is_used_ends_too(sessions: Sessions, clock: SimpleNamespace) -> None:
    one, began = sessions.begin("a"), clock.now
    while sessions.token(one):
        clock.now += IDLE_SECONDS / 2
    assert clock.now - began == LONGEST_SECONDS


def test_one_client_ends_no_session_of_another(sessions: Sessions) -> None:
    mine = sessions.begin("mine")
    for _ in range(2 * MOST):
        sessions.begin("a")
    assert len(sessions) == MOST_OF_TOKEN + 1
    assert sessions.token(mine) == "mine"


def test_beyond_the_bound_the_one_unused_the_longest_ends(sessions: Sessions) -> None:
    ids = [sessions.begin(str(i)) for i in range(MOST)]
    sessions.token(ids[0])
    sessions.begin("new")
    assert len(sessions) == MOST
    assert (sessions.token(ids[0]), sessions.token(ids[1])) == ("0", "")


def test_those_that_ended_make_room(sessions: Sessions, clock: SimpleNamespace) -> None:
    for i in range(MOST):
        sessions.begin(str(i))
    clock.now += IDLE_SECONDS
    sessions.begin("new")
    assert len(sessions) == 1
