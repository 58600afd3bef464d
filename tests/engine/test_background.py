"""Background rows: they use what is left over and cost no request anything."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from router.engine.reading import ReadingRow
from router.engine.scheduler import AnswerRow, Scheduler
from tests.engine.rows import make, reading, row


def step(scheduler: Scheduler) -> dict[bool, int]:
    """One step; tokens by background."""
    tokens = {False: 0, True: 0}
    for chunk in scheduler.schedule():
        tokens[chunk.row.background] += chunk.count
        scheduler.computed(chunk)
        one = chunk.row
        if chunk.samples and isinstance(one, AnswerRow):
            one.tokens.append(0)
            if one.length_reached():
                scheduler.finish(one)
    return tokens


def aside(length: int = 4, adapter: str | None = None, new: int = 40) -> AnswerRow:
    return row(length, adapter, new, background=True)


def test_runs_beside_requests_and_frees_what_it_had() -> None:
    scheduler = make()
    scheduler.add(row(4, "a", new=3))
    scheduler.add(aside(adapter="b", new=3))
    assert step(scheduler) == {False: 4, True: 4}
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
    assert step(scheduler) == {False: 0, True: 64}
    scheduler.add(row(10, new=4))
    assert step(scheduler) == {False: 10, True: 8}
    scheduler.add(row(100))
    assert step(scheduler) == {False: 64, True: 0}


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
    assert scheduler.dropped == [too_large, small]
    assert scheduler.running == [request]


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


def test_a_reading_for_a_request_goes_first_and_one_in_the_background_does_not() -> None:
    scheduler = make(blocks=4)
    scheduler.add(kept := aside(16, new=16))
    step(scheduler)
    scheduler.add(patient := reading(40, background=True))
    step(scheduler)
    assert (scheduler.background, scheduler.unread) == ([kept], [patient])
    scheduler.add(urgent := reading(40))
    step(scheduler)
    assert scheduler.dropped == [kept]
    assert urgent in scheduler.reading
    assert isinstance(urgent, ReadingRow)


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
        tokens = step(scheduler)
        assert tokens[False] + tokens[True] <= 32
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


@settings(max_examples=150, deadline=None)
@given(ARRIVALS, st.sampled_from([0.0, 1e9]))
def test_background_rows_delay_no_request(arrivals: list[list[Arrival]], patience: float) -> None:
    assert played(arrivals, True, patience) == played(arrivals, False, patience)
