from __future__ import annotations

import time

import pytest

from router.engine.scheduler import READING_ROWS, READING_TOKENS, Scheduler
from tests.engine.rows import make, reading, row


def run_step(scheduler: Scheduler) -> list[tuple[str | None, int]]:
    chunks = scheduler.schedule()
    for chunk in chunks:
        scheduler.computed(chunk)
        if chunk.samples:
            chunk.row.tokens.append(0)
            if chunk.row.length_reached():
                scheduler.finish(chunk.row)
    return [(c.row.adapter, c.count) for c in chunks]


def test_base_rows_come_first_and_adapters_are_contiguous() -> None:
    scheduler = make()
    for adapter in ("b", None, "a", "b", None, "a"):
        scheduler.add(row(3, adapter))
    assert [a for a, _ in run_step(scheduler)] == [None, None, "a", "a", "b", "b"]


def test_long_prompts_go_in_chunks_beside_decoding_rows() -> None:
    scheduler = make(step=32)
    scheduler.add(row(5, new=8))
    run_step(scheduler)
    scheduler.add(row(70, "a"))
    assert run_step(scheduler) == [(None, 1), ("a", 31)]
    assert run_step(scheduler) == [(None, 1), ("a", 31)]
    assert run_step(scheduler) == [(None, 1), ("a", 8)]
    assert run_step(scheduler) == [(None, 1), ("a", 1)]


def test_long_prompt_is_not_starved_by_short_ones() -> None:
    scheduler = make(step=32)
    long = row(100)
    scheduler.add(long)
    for _ in range(8):
        scheduler.add(row(30))
        run_step(scheduler)
        if long.remaining <= 1:
            return
    pytest.fail("the long prompt was never computed")


def test_more_adapters_than_slots_all_finish() -> None:
    scheduler = make(slots=2)
    rows = [row(4, adapter) for adapter in "abcdefabcdef"]
    for r in rows:
        scheduler.add(r)
    for _ in range(60):
        used = {adapter for adapter, _ in run_step(scheduler)}
        assert len(used) <= 2
    assert all(r.length_reached() for r in rows)
    assert scheduler.pool.free == scheduler.pool.total


def test_waiting_for_a_slot_is_bounded() -> None:
    scheduler = make(slots=1, patience=0.0)
    scheduler.add(row(4, "a", new=5))
    run_step(scheduler)
    scheduler.add(row(4, "b"))
    time.sleep(0.001)
    for _ in range(4):
        scheduler.add(row(4, "a", new=5))  # would keep the only slot busy for ever
        run_step(scheduler)
    assert [r.adapter for r in scheduler.running] == []
    assert run_step(scheduler)[0][0] == "b"


def test_priority_goes_first_and_keeps_order_within() -> None:
    scheduler = make(running=1)
    for priority, adapter in ((0, "a"), (-1, "b"), (5, "c"), (0, "d")):
        scheduler.add(row(2, adapter, priority=priority))
    assert [r.adapter for r in scheduler.waiting] == ["c", "a", "d", "b"]


def test_finish_frees_everything_wherever_the_row_is() -> None:
    scheduler = make(running=1)
    first, second = row(4, "a"), row(4, "b")
    scheduler.add(first)
    scheduler.add(second)
    run_step(scheduler)
    for r in (first, second, first):
        scheduler.finish(r)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.free == scheduler.pool.total
    assert scheduler.slots.drop("a")


def test_rows_past_their_deadline_are_named() -> None:
    scheduler = make()
    late = row(4)
    late.deadline = time.monotonic() - 1
    scheduler.add(late)
    scheduler.add(row(4))
    assert list(scheduler.expired()) == [late]


def test_a_held_slot_is_not_dropped() -> None:
    scheduler = make()
    scheduler.add(row(4, "a", new=50))
    run_step(scheduler)
    assert not scheduler.slots.drop("a")


def counts(scheduler: Scheduler) -> dict[str, int]:
    """Tokens of the next step by kind of row."""
    found = {"answer": 0, "read": 0, "background": 0}
    for chunk in scheduler.schedule():
        kind = "answer" if chunk.row.samples else "background" if chunk.row.priority else "read"
        found[kind] += chunk.count
    return found


def test_readings_have_places_of_their_own() -> None:
    scheduler = make(running=1, step=512)
    for _ in range(20):
        scheduler.add(reading(4))
        scheduler.add(row(4))
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.reading)) == (1, READING_ROWS)
    assert (len(scheduler.waiting), len(scheduler.unread)) == (19, 20 - READING_ROWS)
    for r in (*scheduler.reading, *scheduler.unread, *scheduler.running, *scheduler.waiting):
        scheduler.finish(r)
    assert not scheduler.busy
    assert scheduler.pool.free == scheduler.pool.total


def test_requests_go_first_and_leave_an_eighth() -> None:
    scheduler = make(step=64)
    scheduler.add(reading(200))
    scheduler.add(row(200))
    assert counts(scheduler) == {"answer": 56, "read": 8, "background": 0}


def test_readings_take_what_is_left_up_to_a_bound() -> None:
    scheduler = make(step=2 * READING_TOKENS)
    for _ in range(3):
        scheduler.add(reading(200))
    scheduler.add(row(10))
    assert counts(scheduler) == {"answer": 10, "read": READING_TOKENS, "background": 0}


def test_background_readings_go_behind_all_and_slowly_beside_requests() -> None:
    scheduler = make(step=64)
    scheduler.add(reading(100, background=True))
    scheduler.add(reading(20))
    assert counts(scheduler) == {"answer": 0, "read": 20, "background": 44}
    scheduler.add(row(10))
    assert counts(scheduler) == {"answer": 10, "read": 20, "background": 8}
    scheduler.add(reading(100))
    assert counts(scheduler) == {"answer": 10, "read": 54, "background": 0}


def test_readings_do_not_take_the_blocks_a_request_waits_for() -> None:
    scheduler = make(blocks=4, patience=0.0)
    scheduler.add(row(30))
    run_step(scheduler)
    scheduler.add(row(40))
    time.sleep(0.001)
    scheduler.add(reading(4))
    scheduler.schedule()
    assert (len(scheduler.waiting), len(scheduler.unread)) == (1, 1)
