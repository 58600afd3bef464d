"""Requests that could not be answered in time are refused as they come; others never are."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from router.access.clients import Client
from router.engine.base import EngineStatus
from router.errors import Overloaded
from router.server.call import Call
from router.server.pace import MARGIN, Pace
from router.types import Usage

ROWS = 4


def call(seconds: float = 600.0, tenant: str = "") -> Call:
    client = Client("c", (), (), tenant=tenant) if tenant else Call("", "").client
    return Call("/m", "id", client, deadline=time.monotonic() + seconds)


def paced(took: float = 1.0, running: int = ROWS) -> Pace:
    """After an answer that took so long."""
    pace = Pace(ROWS, lambda: EngineStatus(running=running))
    one = call()
    with pace.inside(one):
        one.usage = Usage(completion_tokens=5, queue_time=3.0, total_time=3.0 + took)
    return pace


def filled(pace: Pace, held: ExitStack, number: int, tenant: str = "") -> None:
    for _ in range(number):
        held.enter_context(pace.inside(call(tenant=tenant)))


def test_without_a_queue_nobody_is_refused_however_short_the_deadline() -> None:
    with ExitStack() as held:
        pace = paced(took=30.0)
        filled(pace, held, ROWS - 1)
        with pace.inside(call(seconds=0.01)):
            pass


def test_before_the_first_answer_nobody_is_refused() -> None:
    with ExitStack() as held:
        pace = Pace(ROWS, EngineStatus)
        filled(pace, held, 50)
        with pace.inside(call(seconds=0.01)):
            pass


def test_the_queue_tells_how_long_a_request_would_wait() -> None:
    with ExitStack() as held:
        pace = paced(took=1.0)
        filled(pace, held, ROWS + 7)
        assert pace.wait("") == pytest.approx(8 / ROWS)
        with pytest.raises(Overloaded, match=r"2\.0 s of requests wait") as refused, pace.inside(call(2.9)):
            pass
        assert refused.value.metadata["bound"] == "deadline"
        assert 0 < refused.value.retry_after < 2
        with pace.inside(call(seconds=3.0 * MARGIN + 0.5)):
            pass


def test_rows_that_a_full_cache_leaves_empty_count_for_nothing() -> None:
    with ExitStack() as held:
        pace = paced(took=1.0, running=1)
        filled(pace, held, ROWS + 4)
        assert pace.wait("") == pytest.approx(8.0)


def test_a_tenant_waits_for_its_own_and_as_many_of_others() -> None:
    with ExitStack() as held:
        pace = paced(took=1.0)
        filled(pace, held, 40, "crowd")
        filled(pace, held, 3, "few")
        assert pace.wait("crowd") == pytest.approx((40 + 3 - ROWS + 1) / ROWS)
        assert pace.wait("few") == pytest.approx((4 + 3 - ROWS + 1) / ROWS)
        assert pace.wait("new") < pace.wait("few")


def test_it_follows_what_answers_take_and_forgets_what_was() -> None:
    pace = paced(took=1.0)
    for _ in range(200):
        one = call()
        with pace.inside(one):
            one.usage = Usage(completion_tokens=5, total_time=4.0)
    assert pace.mean == pytest.approx(4.0, rel=0.01)
    assert pace.quickest == pytest.approx(4.0, rel=0.01)


def test_an_answer_without_a_token_tells_nothing() -> None:
    pace = paced(took=1.0)
    one = call()
    with pace.inside(one):
        one.usage = Usage(total_time=9.0)
    assert pace.mean == 1.0


def test_a_late_event_loop_lets_nobody_in_while_all_rows_are_busy() -> None:
    late = 0.05
    pace = Pace(ROWS, EngineStatus, lambda: late)
    with ExitStack() as held:
        filled(pace, held, ROWS)
        pace.look()
        late = 0.2
        with pytest.raises(Overloaded) as refused:
            pace.look()
        assert refused.value.metadata["bound"] == "busy"


def test_a_late_event_loop_is_nobodys_fault_while_there_are_rows() -> None:
    pace = Pace(ROWS, EngineStatus, lambda: 5.0)
    with ExitStack() as held:
        filled(pace, held, ROWS - 1)
        pace.look()
