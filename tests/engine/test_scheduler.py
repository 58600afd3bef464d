"""Who runs in a step, and with how many tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.ops import BLOCK
from router.engine.rows import AnswerRow, PoolingRow
from router.engine.scheduler import POOLING_ROWS, POOLING_TOKENS, Scheduler
from tests.engine.rows import make, pooling, row, step


def run_step(scheduler: Scheduler) -> list[tuple[str | None, int]]:
    """Adapter and tokens of each chunk of one step."""
    return [(c.row.adapter, c.count) for c in step(scheduler)]


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


def test_chunks_deep_in_a_prompt_are_smaller_beside_rows_that_decode() -> None:
    """Where attention costs as much as all else after 100 tokens, one after 400 costs as much as five."""

    def counts(decoding: int) -> list[int]:
        scheduler = make(step=32, even_context=100)
        for _ in range(decoding):
            scheduler.add(row(4, "a", new=200))
        run_step(scheduler)
        scheduler.add(row(600, "b", first=1000))
        found: list[int] = []
        while sum(found) < 600:
            found += [count for adapter, count in run_step(scheduler) if adapter == "b"]
        return found

    assert counts(0) == [32] * 18 + [24]
    beside = counts(1)
    assert sum(beside) == 600
    costs = [n * (1 + sum(beside[: i + 1]) / 100) for i, n in enumerate(beside)]
    assert 32 < max(costs) <= 1.5 * 32
    assert min(beside[:-1]) >= 6


def test_a_short_prompt_is_read_at_once_beside_deep_ones() -> None:
    scheduler = make(step=32, even_context=10, blocks=256)
    scheduler.add(row(4, "a", new=200))
    for first in (1000, 3000):
        scheduler.add(row(700, "b", first=first))
    for _ in range(40):
        run_step(scheduler)
    scheduler.add(row(8, "c", first=9000))
    assert ("c", 8) in run_step(scheduler)
    assert any(adapter == "b" for adapter, _ in run_step(scheduler))


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


def test_the_chunks_of_a_step_stay_while_the_same_rows_decode() -> None:
    scheduler = make()
    for first in (0, 100):
        scheduler.add(row(4, new=40, first=first))
    run_step(scheduler)
    chunks = scheduler.schedule()
    assert scheduler.schedule() is chunks
    scheduler.add(row(4, "a", first=200))
    assert len(scheduler.schedule()) == 3
    scheduler.finish(scheduler.running[-1])
    assert [c.row for c in scheduler.schedule()] == [c.row for c in chunks]
    assert scheduler.schedule() is not chunks, "a row has come and gone"


def test_an_answer_in_progress_is_known_to_who_comes_later() -> None:
    scheduler = make()
    scheduler.add(first := row(10, new=60))
    for _ in range(40):
        run_step(scheduler)
    second = row(45)
    second.tokens[:] = first.tokens[:45]
    scheduler.add(second)
    scheduler.schedule()
    assert (first.computed, second.cached) == (49, 2 * BLOCK)
    assert first.allocation is not None
    assert second.allocation is not None
    assert second.allocation.blocks[:2] == first.allocation.blocks[:2]


class Masks:
    """A grammar whose masks count as so many tokens."""

    def __init__(self, cost: int) -> None:
        self.cost = cost


def constrained(cost: int, new: int = 40, *, background: bool = False) -> AnswerRow:
    """An answer of which a prompt of one token is read in the first step."""
    made = row(1, "a", new=new, background=background)
    made.grammar = Masks(cost)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("background", [False, True])
def test_an_answer_sits_out_as_many_steps_as_its_masks_cost_beside_others(background: bool) -> None:
    scheduler = make()
    scheduler.add(row(1, new=40))
    scheduler.add(answer := constrained(0, background=background))
    for _ in range(4):
        assert run_step(scheduler) == [(None, 1), ("a", 1)]
    assert answer.generated == 4
    answer.grammar.cost = 7  # type: ignore[union-attr]
    assert [len(run_step(scheduler)) for _ in range(4)] == [1, 1, 1, 2]
    assert [len(run_step(scheduler)) for _ in range(4)] == [2] * 4, "it is paid"


def test_a_pooling_request_is_not_held_up_by_masks() -> None:
    scheduler = make()
    scheduler.add(answer := constrained(0))
    run_step(scheduler)
    answer.grammar.cost = 3  # type: ignore[union-attr]
    scheduler.add(pooling(40))
    assert [len(run_step(scheduler)) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("background", [False, True])
def test_where_all_would_sit_out_who_has_least_left_goes_on(background: bool) -> None:
    scheduler = make()
    answers = [constrained(0, background=background) for _ in range(3)]
    for answer in answers:
        scheduler.add(answer)
    run_step(scheduler)
    for cost, answer in enumerate(answers, 4):
        answer.grammar.cost = cost  # type: ignore[union-attr]
    assert [len(run_step(scheduler)) for _ in range(3)] == [1, 2, 3]


def test_an_answer_waits_for_none_in_the_background() -> None:
    scheduler = make()
    scheduler.add(answer := constrained(0))
    run_step(scheduler)
    scheduler.add(aside(1))
    for cost in range(10, 15):
        answer.grammar.cost = cost  # type: ignore[union-attr]
        assert "a" in [adapter for adapter, _ in run_step(scheduler)]


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


def test_pooling_requests_have_places_of_their_own() -> None:
    scheduler = make(running=1, step=512)
    for _ in range(20):
        scheduler.add(pooling(4))
        scheduler.add(row(4))
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.pooling)) == (1, POOLING_ROWS)
    assert (len(scheduler.waiting), len(scheduler.pooling_queue)) == (19, 20 - POOLING_ROWS)
    for r in (*scheduler.pooling, *scheduler.pooling_queue, *scheduler.running, *scheduler.waiting):
        scheduler.finish(r)
    assert not scheduler.busy
    assert scheduler.pool.free == scheduler.pool.total


def test_requests_go_first_and_leave_an_eighth() -> None:
    scheduler = make(step=64)
    scheduler.add(pooling(200))
    scheduler.add(row(200))
    assert counts(scheduler) == {"answer": 56, "read": 8, "background": 0}


def test_pooling_requests_take_what_is_left_up_to_a_bound() -> None:
    scheduler = make(step=2 * POOLING_TOKENS)
    for _ in range(3):
        scheduler.add(pooling(200))
    scheduler.add(row(10))
    assert counts(scheduler) == {"answer": 10, "read": POOLING_TOKENS, "background": 0}


def test_background_pooling_go_behind_all_and_slowly_beside_requests() -> None:
    scheduler = make(step=64)
    scheduler.add(pooling(100, background=True))
    scheduler.add(pooling(20))
    assert counts(scheduler) == {"answer": 0, "read": 20, "background": 44}
    scheduler.add(row(10))
    assert counts(scheduler) == {"answer": 10, "read": 20, "background": 8}
    scheduler.add(pooling(100))
    assert counts(scheduler) == {"answer": 10, "read": 54, "background": 0}


def test_pooling_requests_give_back_the_blocks_a_request_has_waited_for() -> None:
    scheduler = make(blocks=4, patience=0.0, prefix_cache=False)
    scheduler.add(first := row(30))
    run_step(scheduler)
    scheduler.add(request := row(40))
    time.sleep(0.001)
    scheduler.add(younger := pooling(4))
    scheduler.schedule()
    assert (scheduler.waiting, scheduler.pooling) == ([request], [younger])  # nobody else could use them
    scheduler.finish(first)
    scheduler.add(other := pooling(20))
    scheduler.schedule()
    assert (scheduler.running, scheduler.pooling, scheduler.pooling_queue) == ([request], [younger], [other])


# -- Background rows use what is left over and cost no request anything.


def shares(scheduler: Scheduler) -> tuple[int, int]:
    """The tokens of one step of requests, and of rows in the background."""
    chunks = step(scheduler)
    background = sum(chunk.count for chunk in chunks if chunk.row.background)
    return sum(chunk.count for chunk in chunks) - background, background


def aside(length: int = 4, adapter: str | None = None, new: int = 40) -> AnswerRow:
    return row(length, adapter, new, background=True)


def test_runs_beside_requests_and_frees_what_it_had() -> None:
    scheduler = make()
    scheduler.add(row(4, "a", new=3))
    scheduler.add(aside(adapter="b", new=3))
    assert shares(scheduler) == (4, 4)
    assert (len(scheduler.running), len(scheduler.background)) == (1, 1)
    step(scheduler)
    step(scheduler)
    assert not scheduler.busy
    assert not scheduler.dropped
    assert scheduler.pool.free == scheduler.pool.total
    assert scheduler.slots.drop("b")


def test_an_eighth_of_the_step_beside_requests_and_all_of_it_alone() -> None:
    scheduler = make(step=64)
    scheduler.add(aside(200, new=4))
    assert shares(scheduler) == (0, 64)
    scheduler.add(row(10, new=4))
    assert shares(scheduler) == (10, 8)
    scheduler.add(row(100))
    assert shares(scheduler) == (64, 0)


def test_one_that_finds_no_room_is_dropped_at_once() -> None:
    scheduler = make(running=4)
    for _ in range(3):
        scheduler.add(row(new=9))
    scheduler.add(late := aside())
    step(scheduler)
    assert scheduler.dropped == [late]
    assert (len(scheduler.running), scheduler.offered) == (3, [])


def test_nobody_waits_while_one_runs() -> None:
    scheduler = make(running=4)
    scheduler.add(first := aside())
    scheduler.add(second := aside())
    step(scheduler)
    scheduler.add(row(new=9))
    scheduler.add(row(new=9))
    step(scheduler)
    assert scheduler.dropped == [second]
    scheduler.add(row(new=9))
    step(scheduler)
    assert scheduler.dropped == [second, first]
    assert len(scheduler.running) == 3


def test_blocks_go_to_the_request() -> None:
    scheduler = make(blocks=8)
    scheduler.add(small := aside(16, new=16))
    scheduler.add(too_large := aside(16, new=64))
    step(scheduler)
    assert scheduler.dropped == [too_large]  # a quarter stays free
    scheduler.add(request := row(50, new=62))
    step(scheduler)
    assert scheduler.background == [small]
    while len(request.tokens) <= 6 * BLOCK:
        assert scheduler.background == [small]
        step(scheduler)
        small.tokens[17:] = []  # as if it took its time
        small.computed = 16
    step(scheduler)
    assert scheduler.dropped == [too_large, small]
    assert (scheduler.running, scheduler.preemptions) == ([request], 0)


def test_it_evicts_no_adapter_and_is_the_first_to_be_evicted() -> None:
    scheduler = make(slots=2)
    for adapter in ("a", "b"):
        scheduler.add(row(4, adapter, new=1))
    step(scheduler)
    scheduler.add(cold := aside(adapter="c"))
    step(scheduler)
    assert scheduler.dropped == [cold]
    assert scheduler.slots.resident() == ("a", "b")
    scheduler.slots.drop("b")
    scheduler.add(warm := aside(adapter="c"))
    step(scheduler)
    assert scheduler.background == [warm]
    scheduler.add(row(4, "d"))  # evicts `a`, which nobody holds
    step(scheduler)
    assert scheduler.slots.resident() == ("c", "d")
    scheduler.add(row(4, "e"))
    step(scheduler)
    assert scheduler.dropped == [cold, warm]
    assert scheduler.slots.resident() == ("d", "e")


def test_pooling_for_a_request_goes_first_and_one_in_the_background_does_not() -> None:
    scheduler = make(blocks=4)
    scheduler.add(kept := aside(16, new=16))
    step(scheduler)
    scheduler.add(patient := pooling(40, background=True))
    step(scheduler)
    assert (scheduler.background, scheduler.pooling_queue) == ([kept], [patient])
    scheduler.add(urgent := pooling(40))
    step(scheduler)
    assert scheduler.dropped == [kept]
    assert urgent in scheduler.pooling
    assert isinstance(urgent, PoolingRow)


def test_it_may_be_cancelled_and_expires_like_any_other() -> None:
    scheduler = make()
    scheduler.add(one := aside())
    scheduler.finish(one)
    assert not scheduler.busy
    scheduler.add(two := aside())
    step(scheduler)
    two.deadline = 0.0
    assert list(scheduler.expired()) == [two]
    scheduler.finish(two)
    assert not scheduler.busy
    assert scheduler.pool.free == scheduler.pool.total


@dataclass(frozen=True)
class Arrival:
    """A row that comes before a step."""

    background: bool
    length: int
    new: int
    adapter: str | None


ARRIVALS = st.lists(
    st.lists(
        st.builds(
            Arrival,
            st.booleans(),
            st.integers(1, 60),
            st.integers(1, 12),
            st.sampled_from([None, "a", "b", "c", "d"]),
        ),
        max_size=4,
    ),
    min_size=1,
    max_size=25,
)


def played(arrivals: list[list[Arrival]], with_background: bool, patience: float) -> list[list[int]]:
    """For each request the steps in which it was admitted and done."""
    scheduler = make(slots=2, running=4, blocks=16, patience=patience, prefix_cache=False)
    requests: list[AnswerRow] = []
    admitted: dict[AnswerRow, int] = {}
    done: dict[AnswerRow, int] = {}
    turn = 0
    while turn < len(arrivals) or scheduler.running or scheduler.waiting:
        for one in arrivals[turn] if turn < len(arrivals) else ():
            if one.background and not with_background:
                continue
            made = row(one.length, one.adapter, one.new, background=one.background)
            requests += [] if one.background else [made]
            scheduler.add(made)
        assert sum(shares(scheduler)) <= 32
        assert not (scheduler.waiting and scheduler.background), "a request waits while a background row runs"
        assert not scheduler.offered
        assert len(scheduler.running) + len(scheduler.background) <= 4
        for request in requests:
            if request.admitted:
                admitted.setdefault(request, turn)
            if request.length_reached():
                done.setdefault(request, turn)
        turn += 1
    for left in tuple(scheduler.background):
        scheduler.finish(left)
    assert scheduler.pool.free == scheduler.pool.total
    return [[admitted[r], done[r]] for r in requests]


@pytest.mark.slow
@given(ARRIVALS, st.sampled_from([0.0, 1e9]))
def test_background_rows_delay_no_request(arrivals: list[list[Arrival]], patience: float) -> None:
    assert played(arrivals, True, patience) == played(arrivals, False, patience)
