"""Whether the store answers, as its callers found."""

from __future__ import annotations

import logging
import threading

import pytest

from router.errors import StoreDown
from router.experiments.live.availability import Availability


def fail(found: Availability, kind: str) -> None:
    with pytest.raises(StoreDown), found.calling(kind):
        raise StoreDown("no route to the database")


def test_down_from_the_first_failure_until_the_next_success():
    found = Availability()
    assert found.up
    fail(found, "read")
    assert found.problem == "no route to the database"
    with found.calling("read"):
        pass
    assert found.up


def test_a_read_that_works_says_nothing_of_writes():
    found = Availability()
    fail(found, "write")
    with found.calling("read"):
        pass
    assert not found.up
    found.forgive("write")
    assert found.up


def test_other_errors_are_not_the_stores():
    found = Availability()
    with pytest.raises(ValueError, match="mine"), found.calling("write"):
        raise ValueError("mine")
    assert found.up


def test_a_call_that_does_not_return_is_down_while_it_lasts():
    found, go, inside = Availability(patience=0.02), threading.Event(), threading.Event()

    def call() -> None:
        with found.calling("write"):
            inside.set()
            go.wait(5)

    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(5)
    threading.Event().wait(0.05)
    assert "has not answered for" in found.problem
    go.set()
    thread.join()
    assert found.up


def test_changes_are_told_once(caplog):
    found = Availability()
    with caplog.at_level(logging.INFO):
        found.tell()
        fail(found, "read")
        found.tell()
        found.tell()
        found.forgive("read")
        found.tell()
        found.tell()
    assert [r.getMessage() for r in caplog.records] == [
        "experiments are off: no route to the database; requests are served without them",
        "experiments are on again",
    ]
