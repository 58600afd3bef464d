"""Among tenants, who was served least is next; with one tenant nothing is different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.fairness import VirtualCounters
from router.engine.ops import BLOCK
from router.engine.rows import ANSWER_COST, AnswerRow, BatchRow, Chunk
from router.engine.scheduler import Scheduler
from tests.engine.rows import make, pooling, row, step
from tests.engine.test_preemption import ARRIVALS, MOST_BLOCKS, Arrival, World

# -- Counters.


def test_time_in_which_nothing_was_wanted_is_no_credit() -> None:
    counters = VirtualCounters()
    counters.enter("a")
    counters.charge("a", 100)
    counters.enter("b")
    assert counters.served("b") == 100
    counters.leave("a")
    counters.leave("b")
    counters.charge("b", 50)
    counters.enter("c")
    assert counters.served("c") == 150, "as who waited last"
    counters.enter("a")
    assert counters.served("a") == 150
    counters.charge("a", 10)
    counters.leave("a")
    counters.enter("a")
    assert counters.served("a") == 160, "what was served is not forgotten"


def test_one_that_is_pushed_aside_is_not_lifted() -> None:
    counters = VirtualCounters()
    counters.enter("a")
    counters.leave("a")
    counters.enter("b")
    counters.charge("b", 70)
    counters.enter("a", again=True)
    assert counters.served("a") == 0


def test_the_work_of_a_grammar_is_charged_as_tokens_of_the_answer() -> None:
    plain, constrained = row(), row()
    constrained.grammar = SimpleNamespace(cost=100)  # type: ignore[assignment]
    assert constrained.cost == plain.cost + ANSWER_COST * 100


# -- Shares of two tenants that always want more.


@dataclass
class Crowd:
    """A tenant with `waiting` requests in the queue at all times."""

    tenant: str
    length: int = 20
    new: int = 30
    share: float = 1.0
    waiting: int = 12

    def come(self, scheduler: Scheduler) -> None:
        held = sum(r.tenant == self.tenant for r in scheduler.waiting)
        for _ in range(held, self.waiting):
            scheduler.add(row(self.length, None, self.new, tenant=self.tenant, share=self.share))


def served(crowds: Sequence[Crowd], steps: int, before: int = 0) -> Counter[str]:
    """What each was served in so many steps, after those `before`: prompts once, answers twice."""
    scheduler = make(running=8, step=64, blocks=512, prefix_cache=False)
    found: Counter[str] = Counter()
    for turn in range(before + steps):
        for crowd in crowds:
            crowd.come(scheduler)
        chunks = step(scheduler)
        assert len(scheduler.running) + sum(r.row not in scheduler.running for r in chunks) == 8, (
            "a place idles"
        )
        if turn >= before:
            for chunk in chunks:
                prompt = chunk.count - chunk.samples * (chunk.count == 1)
                found[chunk.row.tenant] += prompt + 2 * chunk.samples
    return found


@pytest.mark.parametrize(
    "light",
    [
        Crowd("b"),
        Crowd("b", waiting=1),
        Crowd("b", length=100, new=3),
        Crowd("b", length=2, new=120),
        Crowd("b", share=2.0),
        Crowd("b", share=0.5, new=7),
    ],
    ids=str,
)
def test_tokens_are_shared_by_weight(light: Crowd) -> None:
    """However many requests each has in the queue, and however long they are."""
    found = served([Crowd("a", waiting=40), light], steps=2000, before=100)
    assert found["b"] / found["a"] == pytest.approx(light.share, rel=0.1)


def test_three_share_alike() -> None:
    found = served([Crowd("a", waiting=90), Crowd("b", new=60), Crowd("c", waiting=6)], 3000, 100)
    assert max(found.values()) <= 1.1 * min(found.values())


def test_a_late_comer_gets_its_share_and_no_credit() -> None:
    scheduler = make(running=8, step=64, blocks=512, prefix_cache=False)
    first, late = Crowd("a"), Crowd("b")
    for _ in range(500):
        first.come(scheduler)
        step(scheduler)
    tokens: Counter[str] = Counter()
    for _ in range(600):
        first.come(scheduler)
        late.come(scheduler)
        for chunk in step(scheduler):
            tokens[chunk.row.tenant] += chunk.count
    assert 0.85 < tokens["b"] / tokens["a"] <= 1.1


REQUESTS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=60, max_size=60)


@pytest.mark.slow
@given(REQUESTS, REQUESTS)
def test_while_both_wait_neither_is_ever_far_ahead(
    ones: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    """The bound of the paper: what one batch may hold."""
    scheduler = make(running=4, step=32, blocks=512, prefix_cache=False, patience=1e9)
    for (length, new), tenant in [*((one, "a") for one in ones), *((one, "b") for one in others)]:
        scheduler.add(row(length, None, new, tenant=tenant))
    bound = max(60, 2 * 4 * 40)
    while {r.tenant for r in scheduler.waiting} == {"a", "b"}:
        step(scheduler)
        scheduler._fair._settle(scheduler.running)
        counters = scheduler._fair._counters
        assert abs(counters.served("a") - counters.served("b")) <= bound


# -- One who asks little beside one who asks for all.


def waits(scheduler: Scheduler, count: int, make_row: Callable[[int], AnswerRow]) -> list[int]:
    """Steps in which each of so many, one after the other, was not admitted."""
    found = []
    for number in range(count):
        scheduler.add(one := make_row(number))
        waited = 0
        while not one.length_reached():
            step(scheduler)
            waited += not one.admitted
        found.append(waited)
    return found


def flood(scheduler: Scheduler, tenant: str = "flood", **fields: int) -> list[AnswerRow]:
    rows = [row(**({"length": 20, "new": 400} | fields), tenant=tenant) for _ in range(200)]
    for one in rows:
        scheduler.add(one)
    for _ in range(20):
        step(scheduler)
    return rows


@pytest.mark.parametrize("blocks", [400, 120], ids=["places are short", "blocks are short"])
def test_one_at_a_time_does_not_wait_for_200_long_ones(blocks: int) -> None:
    scheduler = make(running=8, step=64, blocks=blocks, patience=0.0)
    rows = flood(scheduler)
    found = waits(scheduler, 20, lambda i: row(20, None, 10, tenant="light", first=1000 * i))
    assert max(found) <= 2
    assert scheduler.running
    assert rows[0] in scheduler.running or rows[0].length_reached(), "the first is never pushed aside"
    assert rows[0].preempted == 0
    while not all(one.length_reached() for one in rows[:20]):
        step(scheduler)


def test_without_names_it_waits_behind_them() -> None:
    scheduler = make(running=8, step=64, blocks=400, patience=0.0)
    flood(scheduler, tenant="")
    scheduler.add(one := row(20, None, 10))
    for _ in range(300):
        step(scheduler)
    assert not one.admitted


def test_who_waits_too_little_pushes_nobody_aside() -> None:
    scheduler = make(running=8, step=64, blocks=400, patience=1e9)
    flood(scheduler)
    scheduler.add(light := row(20, None, 10, tenant="light"))
    while not light.admitted:
        step(scheduler)
    assert scheduler.preemptions == 0


def test_what_was_pushed_aside_for_a_light_tenant_does_not_push_it_aside_in_turn() -> None:
    scheduler = make(running=4, step=64, blocks=400, patience=0.0)
    rows = flood(scheduler)
    scheduler.add(light := row(20, None, 100, tenant="light"))
    while not light.length_reached():
        step(scheduler)
    assert (light.preempted, scheduler.preemptions) == (0, 1)
    assert [one.preempted for one in rows[:4]] == [0, 0, 0, 1]


def test_growing_takes_blocks_from_who_has_most_and_leaves_each_its_first() -> None:
    scheduler = make(running=8, step=64, blocks=60, patience=0.0)
    flood(scheduler)
    scheduler.add(light := row(20, None, 150, tenant="light"))
    while not light.length_reached():
        step(scheduler)
    assert scheduler.preemptions > 1
    assert light.preempted == 0


def test_a_slot_is_taken_from_who_has_all() -> None:
    scheduler = make(slots=2, running=8, step=64, blocks=400, patience=0.0)
    rows = [row(20, "ab"[i % 2], 400, tenant="flood") for i in range(50)]
    for one in rows:
        scheduler.add(one)
    for _ in range(20):
        step(scheduler)
    scheduler.add(light := row(20, "c", 5, tenant="light"))
    step(scheduler)
    assert light.admitted
    assert set(scheduler.slots.resident()) == {"a", "c"}
    assert rows[0].preempted == 0


def test_a_long_prompt_is_read_beside_those_of_another_tenant() -> None:
    """The first gets half of each step; then comes the first of the other, not the first one's second."""
    scheduler = make(running=8, step=64, blocks=2000)
    rows = [row(2000, None, 5, tenant="flood", first=5000 * i) for i in range(5)]
    for one in rows:
        scheduler.add(one)
    step(scheduler)
    scheduler.add(light := row(1500, None, 5, tenant="light", first=90_000))
    for _ in range(50):
        step(scheduler)
    assert light.computed >= 1500
    assert rows[0].computed >= 1500
    assert [one.computed for one in rows[2:]] == [0, 0, 0]


def test_priority_decides_before_tenants() -> None:
    scheduler = make(running=1)
    for tenant, priority in (("a", 0), ("a", 1), ("b", 0), ("b", -1), ("a", 0)):
        scheduler.add(row(4, priority=priority, tenant=tenant))
    ended = []
    while scheduler.busy:
        (chunk,) = step(scheduler)
        if chunk.row not in scheduler.running:
            ended.append((chunk.row.tenant, chunk.row.priority))
    assert ended == [("a", 1), ("b", 0), ("a", 0), ("a", 0), ("b", -1)]


def test_readings_and_shadows_cost_no_tenant_anything() -> None:
    scheduler = make()
    scheduler.add(pooling(20))
    scheduler.add(row(20, tenant="a", background=True))
    while scheduler.busy:
        step(scheduler)
    counters = scheduler._fair._counters
    assert counters.served("a") == counters.served("") == 0


def test_what_is_computed_twice_and_what_is_found_is_not_charged() -> None:
    scheduler = make(blocks=6)
    scheduler.add(row(33, new=15, tenant="b"))
    while scheduler.busy:
        step(scheduler)
    assert scheduler._fair._counters.served("b") == 33 + 2 * 15
    old, young = row(15, new=60, first=100, tenant="b"), row(33, new=30, tenant="b")
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.busy:
        step(scheduler)
    assert (young.preempted > 0, young.cached) == (True, 32)
    assert scheduler._fair._counters.served("b") == 33 + 2 * 15 + 15 + 2 * 60 + 1 + 2 * 30


# -- Whatever comes, from whomever.


class Tenants(World):
    """With rows of several tenants, each with its own share."""

    def __init__(self, tenants: Iterator[str], blocks: int, patience: float, prefix_cache: bool) -> None:
        super().__init__(blocks, patience, prefix_cache)
        self.tenants = tenants

    def prepared(self, made: BatchRow) -> BatchRow:
        made.tenant = next(self.tenants)
        made.share = {"a": 1.0, "b": 3.0}.get(made.tenant, 0.5)
        return made

    def check_order(self, before: list[BatchRow], times: dict[BatchRow, int], chunks: list[Chunk]) -> None:
        """The first of all is never pushed aside and goes on, whosever it is."""
        scheduler, fair = self.scheduler, self.scheduler._fair
        everybody = [*scheduler.running, *scheduler.waiting, *scheduler.pooling, *scheduler.pooling_queue]
        if everybody:
            first = min(everybody, key=lambda r: r.rank)
            assert first.preempted == times.get(first, first.preempted)
            assert (
                first in {c.row for c in chunks}
                or first in scheduler.waiting
                or first in scheduler.pooling_queue
            )
        if any(one.preempted > times[one] for one in before):
            assert not scheduler.background
        assert +fair._rows == Counter(r.tenant for r in (*scheduler.running, *scheduler.waiting))
        assert +fair._running == Counter(r.tenant for r in scheduler.running)
        assert +fair._counters._waiting == Counter(r.tenant for r in scheduler.waiting)


@pytest.mark.slow
@given(
    ARRIVALS,
    st.lists(st.sampled_from(["a", "a", "b", ""]), min_size=48, max_size=48),
    st.integers(MOST_BLOCKS, 24),
    st.sampled_from([0.0, 1e9]),
    st.booleans(),
)
def test_everybody_ends_and_nothing_is_lost(
    arrivals: list[list[Arrival]], tenants: list[str], blocks: int, patience: float, prefix_cache: bool
) -> None:
    world = Tenants(iter(tenants), blocks, patience, prefix_cache)
    work = sum(a.length + a.new + 2 for coming in arrivals for a in coming)
    for turn in world.run(arrivals):
        assert turn <= len(arrivals) + 4 * work + 20, "somebody waits for ever"
    assert world.scheduler.pool.free == world.scheduler.pool.total
    assert not world.scheduler.slots._users


@pytest.mark.slow
@pytest.mark.parametrize("others", [["b"], ["b", "c"], [f"t{i}" for i in range(40)]])
def test_a_large_one_is_not_starved_by_small_ones_of_others(others: list[str]) -> None:
    """It needs nearly all blocks, and the others never stop: tenants that come and go are none the better."""
    scheduler = make(blocks=24, running=6, step=64, patience=0.0, prefix_cache=False)
    for i in range(6):
        scheduler.add(row(20, new=5 + i, tenant=others[i % len(others)]))
    step(scheduler)
    scheduler.add(large := row(20 * BLOCK, new=30, tenant="a"))
    for turn in range(3000):
        waiting = Counter(r.tenant for r in scheduler.waiting)
        for tenant in others:
            if not waiting[tenant] and turn % len(others) < 3:
                scheduler.add(row(20, new=10, tenant=tenant))
        step(scheduler)
        if large.length_reached():
            return
    pytest.fail("it never came to its end")
