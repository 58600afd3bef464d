"""Rows whose adapter acts late: what a step computes with what, and whose keys and values serve whom."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.blocks import Chain, activated, chain_root
from router.engine.ops import BLOCK
from router.engine.rows import AnswerRow, Row
from router.engine.scheduler import Scheduler
from tests.engine.rows import make, row

BASE = chain_root("base", None)


def run_step(scheduler: Scheduler) -> list[tuple[str | None, int, bool]]:
    """Adapter, tokens, and whether a token follows, of each chunk; computed, and tokens appended."""
    chunks = scheduler.schedule()
    seen = [(c.adapter, c.count, c.samples) for c in chunks]
    for chunk in chunks:
        scheduler.computed(chunk)
        if chunk.samples:
            chunk.row.tokens.append(0)
            if chunk.row.length_reached():  # type: ignore[attr-defined]
                scheduler.finish(chunk.row)
    return seen


def test_a_prompt_is_the_bases_up_to_there_and_the_adapters_from_there_in_one_step() -> None:
    scheduler = make(step=64)
    scheduler.add(row(10, "b", inactive=7))
    scheduler.add(row(12, None, first=100))
    scheduler.add(row(9, "a", first=200))
    scheduler.add(row(11, "a", first=300, inactive=1))
    assert run_step(scheduler) == [
        (None, 7, False),
        (None, 12, True),
        (None, 1, False),
        ("a", 9, True),
        ("a", 10, True),
        ("b", 3, True),
    ]
    assert run_step(scheduler) == [(None, 1, True), ("a", 1, True), ("a", 1, True), ("b", 1, True)]


@pytest.mark.parametrize(
    ("inactive", "steps"),
    [
        (0, [("a", 32), ("a", 18)]),
        (31, [(None, 31), ("a", 1), ("a", 18)]),
        (32, [(None, 32), ("a", 18)]),
        (33, [(None, 32), (None, 1), ("a", 17)]),
        (49, [(None, 32), (None, 17), ("a", 1)]),
    ],
)
def test_where_chunks_end_and_where_the_adapter_begins_are_apart(
    inactive: int, steps: list[tuple[str | None, int]]
) -> None:
    scheduler = make(step=32)
    scheduler.add(row(50, "a", inactive=inactive))
    seen = run_step(scheduler) + run_step(scheduler)
    assert [(adapter, count) for adapter, count, _ in seen] == steps
    assert [samples for *_, samples in seen] == [False] * (len(steps) - 1) + [True]


def played(*rows: AnswerRow) -> list[int]:
    """Cached tokens of each, one after the other."""
    scheduler = make(step=64)
    for one in rows:
        scheduler.add(one)
        while scheduler.busy:
            run_step(scheduler)
    return [one.cached for one in rows]


def late(adapter: str | None = "a", inactive: int = 40, length: int = 83, **fields: Any) -> AnswerRow:
    """The same tokens for everybody."""
    return row(length, adapter, inactive=inactive if adapter else 0, **fields)


def test_full_blocks_before_it_acts_are_the_bases() -> None:
    assert played(late(None), late("a"), late("b"), late("a")) == [0, 32, 32, 80]
    assert played(late("a"), late("b"), late(None)) == [0, 32, 32]
    assert played(late(None), late("a", inactive=48), late("a", inactive=47)) == [0, 48, 32]


def test_a_plain_adapters_blocks_are_its_own() -> None:
    assert played(late(None), late("a"), late("a", inactive=0), late("a")) == [0, 32, 0, 80]


def test_where_in_a_block_it_begins_to_act_makes_another_block() -> None:
    assert played(late("a", 40), late("a", 41), late("a", 41), late("a", 40)) == [0, 32, 80, 80]


def test_tenants_share_no_more_than_the_templates_beginning() -> None:
    rows = [late(tenant=tenant, shared=20) for tenant in ("a", "b", "b")]
    assert played(*rows) == [0, 16, 80]
    assert [one.usage().cached_tokens for one in rows] == [0, 0, 64]
    assert played(late(None, tenant="a"), late("a", tenant="b"), late("a", tenant="a")) == [0, 0, 32]
    bases = [late(adapter, shared=20, tenant="a") for adapter in (None, "a", "b")]
    assert played(*bases, late("a", shared=20, tenant="b")) == [0, 32, 32, 16]


def test_a_chain_is_the_bases_before_its_adapter_and_salts_come_in_on_their_own() -> None:
    tokens = list(range(4 * BLOCK))

    def hashes(*said: Any) -> list[bytes]:
        chain = Chain(BASE, *said)
        return [chain.at(tokens, place) for place in range(4)]

    base, mine = hashes(), hashes(b"", 0, activated("a", 40), 40)
    assert [x == y for x, y in zip(base, mine, strict=True)] == [True, True, False, False]
    assert hashes(b"", 0, activated("b", 40), 40)[2] != mine[2]
    for shared in (0, 20, 40, 60):
        salted, both = hashes(b"s" * 32, shared), hashes(b"s" * 32, shared, activated("a", 40), 40)
        assert [x == y for x, y in zip(salted, both, strict=True)] == [True, True, False, False]
        assert [x == y for x, y in zip(both, mine, strict=True)] == [p < shared // BLOCK for p in range(4)]


ASKED = st.lists(
    st.tuples(
        st.integers(1, 90),  # length
        st.integers(1, 30),  # new
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([0, 5, 16, 30, 32, 33, 60, 89]),  # tokens before the adapter acts
        st.sampled_from([0, 0, 1, 6]),  # steps before the next comes
    ),
    max_size=25,
)


class World:
    """A scheduler, and what is at every place of the cache: which weights read which tokens to get there."""

    def __init__(self, blocks: int) -> None:
        self.scheduler = make(blocks=blocks, running=4)
        self.held: dict[tuple[int, int], int] = {}

    def play(self) -> None:
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            start = chunk.row.computed + chunk.after
            for place in range(start, start + chunk.count):
                self.compute(chunk.row, place, chunk.adapter)
        for chunk in chunks:
            self.scheduler.computed(chunk)
            if chunk.samples:
                chunk.row.tokens.append(0)
                if chunk.row.length_reached():  # type: ignore[attr-defined]
                    self.scheduler.finish(chunk.row)

    def compute(self, one: Row, place: int, weights: str | None) -> None:
        """What was found before it is as the row would have computed it alone, and so is this."""
        assert one.allocation is not None
        at = [(one.allocation.blocks[p // BLOCK], p % BLOCK) for p in range(place + 1)]
        before = self.held[at[-2]] if place else 0
        self.held[at[-1]] = hash((before, one.tokens[place], weights))
        alone = 0
        for p in range(place + 1):
            alone = hash((alone, one.tokens[p], one.adapter if p >= one.inactive else None))
            assert self.held[at[p]] == alone


@given(ASKED, st.integers(8, 40))
def test_no_row_ever_finds_what_other_weights_computed(
    asking: list[tuple[int, int, str | None, int, int]], blocks: int
) -> None:
    world = World(blocks)
    for length, new, adapter, inactive, steps in asking:
        world.scheduler.add(row(length, adapter, new, inactive=min(inactive, length - 1) if adapter else 0))
        for _ in range(steps):
            world.play()
    while world.scheduler.busy:
        world.play()
