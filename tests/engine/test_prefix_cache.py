"""Blocks of the KV cache: who owns them, and who finds what others computed.

What one tenant sent is in no other tenant's cache, except for what a template begins every prompt with. Keys
and values are used only where the same weights computed them, also where an adapter acts late in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.base import Job, Prompt
from router.engine.ops import BLOCK
from router.engine.rows import (
    AnswerRow,
    BlockPool,
    CacheAllocation,
    CacheSalts,
    Chain,
    activated,
    chain_root,
)
from router.engine.scheduler import Scheduler
from router.engine.torch_engine import TorchEngine
from router.types import PromptTemplate, SamplingParams, Turn
from tests.engine import tiny
from tests.engine.contract import read
from tests.engine.rows import advance, make, row, step

ROOT = chain_root("base", None)


def allocate(pool: BlockPool, prompt: list[int], total: int, root: bytes = ROOT) -> CacheAllocation:
    allocation = pool.allocate(Chain(root), prompt, total)
    assert allocation is not None
    return allocation


def compute(pool: BlockPool, allocation: CacheAllocation, tokens: list[int], root: bytes = ROOT) -> None:
    pool.publish(allocation, Chain(root), tokens, len(tokens))


def test_prefix_is_reused_after_it_was_computed() -> None:
    pool, prompt = BlockPool(8), list(range(40))
    first = allocate(pool, prompt, 48)
    assert first.cached_tokens == 0
    compute(pool, first, prompt)
    second = allocate(pool, prompt, 48)
    assert second.cached_tokens == 32
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]


@pytest.mark.parametrize(
    ("length", "root", "cache", "found"),
    [
        (40, ROOT, True, 32),
        (32, ROOT, True, 16),  # a token is always left to compute
        (40, chain_root("base", "adapter"), True, 0),
        (40, chain_root("other base", None), True, 0),
        (40, ROOT, False, 0),
    ],
)
def test_what_is_found(length: int, root: bytes, cache: bool, found: int) -> None:
    pool, prompt = BlockPool(16, prefix_cache=cache), list(range(length))
    compute(pool, allocate(pool, prompt, 40), prompt)
    assert allocate(pool, prompt, 40, root).cached_tokens == found


def test_freed_prefix_survives_until_room_is_needed() -> None:
    pool, prompt = BlockPool(3), list(range(40))
    first = allocate(pool, prompt, 48)
    compute(pool, first, prompt)
    pool.release(first)
    assert pool.free == 3
    again = allocate(pool, prompt, 48)
    assert again.cached_tokens == 32
    pool.release(again)
    other = allocate(pool, [7] * 40, 48)
    assert other.cached_tokens == 0
    pool.release(other)
    assert allocate(pool, prompt, 48).cached_tokens == 0


def test_grows_block_by_block_until_there_is_none() -> None:
    pool, prompt = BlockPool(3), list(range(20))
    assert pool.allocate(Chain(ROOT), [1], 4 * BLOCK) is None
    assert pool.free == 3
    one = allocate(pool, prompt, 20)
    assert pool.grow(one)
    assert (len(one.blocks), pool.free) == (3, 0)
    assert not pool.grow(one)
    pool.release(one)
    assert pool.free == 3


def test_what_fits_can_be_allocated_and_what_does_not_cannot() -> None:
    """With blocks that others hold given back first, and some left to spare."""
    pool, prompt = BlockPool(8), list(range(40))
    mine = allocate(pool, prompt, 48)
    compute(pool, mine, prompt)
    other = allocate(pool, prompt, 48)  # two blocks are both's
    assert (pool.free, mine.blocks[:2]) == (4, other.blocks[:2])
    new, same = [7] * 40, Chain(ROOT)
    assert pool.fits(Chain(ROOT), new, 64)
    assert not pool.fits(Chain(ROOT), new, 64, spare=1)
    assert not pool.fits(Chain(ROOT), new, 65)
    assert pool.fits(same, prompt, 6 * BLOCK)  # two of six are known
    assert not pool.fits(same, prompt, 7 * BLOCK)
    assert pool.fits(Chain(ROOT), new, 5 * BLOCK, without=[other])  # what both hold is not given back
    assert not pool.fits(Chain(ROOT), new, 6 * BLOCK, without=[other])
    assert pool.fits(Chain(ROOT), new, 8 * BLOCK, without=[mine, other])
    assert pool.fits(same, prompt, 8 * BLOCK, without=[mine, other])
    assert not pool.fits(same, prompt, 9 * BLOCK, without=[mine, other])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 50), st.integers(0, 30), st.booleans()),
        max_size=40,
    )
)
def test_blocks_are_never_shared_by_different_tokens(work: list[tuple[int, int, int, bool]]) -> None:
    pool = BlockPool(12)
    held: list[tuple[CacheAllocation, list[int]]] = []
    content: dict[int, tuple[int, ...]] = {}
    for kind, length, extra, release in work:
        prompt = [kind] * length
        allocation = pool.allocate(Chain(ROOT), prompt, length + extra)
        if allocation is not None:
            for i in range(allocation.cached_tokens // BLOCK):
                assert content[allocation.blocks[i]] == tuple(prompt[: (i + 1) * BLOCK])
            for i in range(allocation.cached_tokens // BLOCK, length // BLOCK):
                content[allocation.blocks[i]] = tuple(prompt[: (i + 1) * BLOCK])
            pool.publish(allocation, Chain(ROOT), prompt, length)
            held.append((allocation, prompt))
        if release and held:
            pool.release(held.pop(0)[0])
        writable = [b for a, p in held for b in a.blocks[len(p) // BLOCK :]]
        assert len(writable) == len(set(writable))
    for allocation, _ in held:
        pool.release(allocation)
    assert pool.free == pool.total


# -- Rows: what each finds, one after the other.


def cached(*rows: AnswerRow) -> list[int]:
    """Cached tokens of each."""
    scheduler = make(step=64)
    for one in rows:
        scheduler.add(one)
        while scheduler.busy:
            step(scheduler)
    return [one.cached for one in rows]


def of(
    tenant: str, shared: int = 0, length: int = 83, adapter: str | None = None, **fields: Any
) -> AnswerRow:
    """The same tokens from every tenant."""
    return row(length, adapter, tenant=tenant, shared=shared, **fields)


def late(adapter: str | None = "a", inactive: int = 40, **fields: Any) -> AnswerRow:
    """The same tokens; the adapter acts behind the first `inactive`."""
    return row(83, adapter, inactive=inactive if adapter else 0, **fields)


FOUND: dict[str, tuple[list[AnswerRow], list[int]]] = {
    "a tenant's own": ([of(tenant) for tenant in ("a", "b", "", "a", "b", "")], [0] * 3 + [80] * 3),
    **{
        f"a template's beginning of {shared}": (
            [of("a", shared), of("b", shared), of("b", shared)],
            [0, shared // BLOCK * BLOCK, 80],
        )
        for shared in (0, 15, 16, 40, 47, 48)
    },
    "not another adapter's": ([of("a", 48, adapter=name) for name in ("a", "b", None)], [0, 0, 0]),
    "the base's, before it acts": ([late(None), late("a"), late("b"), late("a")], [0, 32, 32, 80]),
    "as computed for an adapter": ([late("a"), late("b"), late(None)], [0, 32, 32]),
    "up to where it acts": ([late(None), late("a", 48), late("a", 47)], [0, 48, 32]),
    "nothing for a plain adapter": ([late(None), late("a"), late("a", 0), late("a")], [0, 32, 0, 80]),
    "by where it acts": ([late("a", 40), late("a", 41), late("a", 41), late("a", 40)], [0, 32, 80, 80]),
    "a tenant's own before it acts": (
        [late(None, tenant="a"), late(tenant="b"), late(tenant="a")],
        [0, 0, 32],
    ),
    "of the template and the base": (
        [*(late(name, shared=20, tenant="a") for name in (None, "a", "b")), late(shared=20, tenant="b")],
        [0, 32, 32, 16],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_row_finds(name: str) -> None:
    rows, found = FOUND[name]
    assert cached(*rows) == found


@pytest.mark.parametrize(("tenant", "shown"), [("b", [0, 32]), ("", [48, 80])])
def test_usage_shows_a_tenants_own_only(tenant: str, shown: list[int]) -> None:
    """Where there are tenants, not even whether others use the same adapter."""
    rows = [of("a", 48), of(tenant, 48), of(tenant, 48)]
    assert cached(*rows)[1:] == [48, 80]
    assert [one.usage().cached_tokens for one in rows[1:]] == shown


def test_what_is_generated_is_a_tenants_own_too() -> None:
    first = of("a", 64, length=64, new=40)
    later = [of(tenant, 64, length=100) for tenant in ("b", "a")]
    for one in later:
        one.tokens[64:] = [0] * 36
    assert cached(first, *later) == [0, 64, 96]


def hashes(*chain: Any) -> list[bytes]:
    made, tokens = Chain(ROOT, *chain), list(range(4 * BLOCK))
    return [made.at(tokens, place) for place in range(4)]


def test_salts_differ_by_owner_and_by_process() -> None:
    salts, others = CacheSalts(), CacheSalts()
    assert salts.of("tenant a") == salts.of("tenant a")
    named = {salts.of("tenant a"), salts.of("tenant b"), salts.of("pooling a"), others.of("tenant a")}
    assert len(named) == 4
    one, other = ({shared: hashes(salts.of(name), shared) for shared in (0, 31, 64)} for name in "ab")
    assert one[64] == other[64]
    assert [x == y for x, y in zip(one[31], other[31], strict=True)] == [True, False, False, False]
    assert set(one[0]).isdisjoint(other[0])


def test_a_chain_is_the_bases_before_its_adapter_and_salts_come_in_on_their_own() -> None:
    base, mine = hashes(), hashes(b"", 0, activated("a", 40), 40)
    assert [x == y for x, y in zip(base, mine, strict=True)] == [True, True, False, False]
    assert hashes(b"", 0, activated("b", 40), 40)[2] != mine[2]
    for shared in (0, 20, 40, 60):
        salted, both = hashes(b"s" * 32, shared), hashes(b"s" * 32, shared, activated("a", 40), 40)
        assert [x == y for x, y in zip(salted, both, strict=True)] == [True, True, False, False]
        assert [x == y for x, y in zip(both, mine, strict=True)] == [p < shared // BLOCK for p in range(4)]


# -- The chunks of rows whose adapter acts late.


def chunks_of(scheduler: Scheduler) -> list[tuple[str | None, int, bool]]:
    """Adapter, tokens, and whether a token follows, of each chunk of a step that is made."""
    chunks = scheduler.schedule()
    seen = [(c.adapter, c.count, c.samples) for c in chunks]
    advance(scheduler, chunks)
    return seen


def test_a_prompt_is_the_bases_up_to_there_and_the_adapters_from_there_in_one_step() -> None:
    scheduler = make(step=64)
    scheduler.add(row(10, "b", inactive=7))
    scheduler.add(row(12, None, first=100))
    scheduler.add(row(9, "a", first=200))
    scheduler.add(row(11, "a", first=300, inactive=1))
    assert chunks_of(scheduler) == [
        (None, 7, False),
        (None, 12, True),
        (None, 1, False),
        ("a", 9, True),
        ("a", 10, True),
        ("b", 3, True),
    ]
    assert chunks_of(scheduler) == [(None, 1, True), ("a", 1, True), ("a", 1, True), ("b", 1, True)]


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
    seen = chunks_of(scheduler) + chunks_of(scheduler)
    assert [(adapter, count) for adapter, count, _ in seen] == steps
    assert [samples for *_, samples in seen] == [False] * (len(steps) - 1) + [True]


# -- Whatever comes, in whatever order.


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", ""]),  # tenant
        st.integers(1, 90),  # length
        st.integers(1, 30),  # new
        st.sampled_from([0, 100]),  # first token
        st.sampled_from([None, "a", "b"]),  # adapter
        st.sampled_from([0, 5, 16, 30, 32, 33, 60, 89]),  # tokens before the adapter acts
        st.sampled_from([0, 0, 1, 6]),  # steps before the next comes
    ),
    max_size=25,
)


class World:
    """A scheduler, and what each place of the cache holds: which weights read which tokens, and for whom."""

    def __init__(self, blocks: int) -> None:
        self.scheduler = make(blocks=blocks, running=4)
        self.held: dict[tuple[int, int], int] = {}
        self.wrote: dict[int, str] = {}  # tenants by block
        self.times: dict[AnswerRow, int] = {}  # preempted when it was last looked at

    def play(self) -> None:
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            one = chunk.row
            assert isinstance(one, AnswerRow)
            self.check_found(one)
            start = one.computed + chunk.after
            for place in range(start, start + chunk.count):
                self.compute(one, place, chunk.adapter)
        advance(self.scheduler, chunks)

    def check_found(self, one: AnswerRow) -> None:
        """What it found is its tenant's or the template's."""
        assert one.allocation is not None
        if self.times.get(one) != one.preempted:
            self.times[one] = one.preempted
            for place, block in enumerate(one.allocation.blocks[: one.computed // BLOCK]):
                assert (place + 1) * BLOCK <= one.shared or self.wrote[block] == one.tenant

    def compute(self, one: AnswerRow, place: int, weights: str | None) -> None:
        """What is before it is as the row would have computed it alone, and so is this."""
        assert one.allocation is not None
        at = [(one.allocation.blocks[p // BLOCK], p % BLOCK) for p in range(place + 1)]
        before = self.held[at[-2]] if place else 0
        self.held[at[-1]] = hash((before, one.tokens[place], weights))
        self.wrote[at[-1][0]] = one.tenant
        alone = 0
        for p in range(place + 1):
            alone = hash((alone, one.tokens[p], one.adapter if p >= one.inactive else None))
            assert self.held[at[p]] == alone


@given(REQUESTS, st.integers(0, 50), st.integers(8, 40))
def test_no_row_finds_what_other_weights_computed_or_another_tenant_sent(
    requests: Sequence[tuple[str, int, int, int, str | None, int, int]], shared: int, blocks: int
) -> None:
    world = World(blocks)
    for tenant, length, new, first, adapter, inactive, steps in requests:
        late = 0 if adapter is None else min(inactive, length - 1)
        common = min(shared, length)
        world.scheduler.add(
            row(length, adapter, new, first=first, tenant=tenant, shared=common, inactive=late)
        )
        for _ in range(steps):
            world.play()
    while world.scheduler.busy:
        world.play()


# -- With a model.


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    made = tiny.engine("llama", cache_tokens=4096)
    yield made
    made.close()


async def test_answers_are_the_same_whoever_asked_before(engine: TorchEngine) -> None:
    template = PromptTemplate("You know all about the law of the sea and of harbours.", "Q: {prompt}")
    prompt = Prompt((Turn("user", "May a ship that is in need enter any harbour it sees?"),), None, template)
    tokens = engine.encode(prompt)
    shared = engine.shared(prompt, tokens)
    assert BLOCK <= shared < len(tokens) - 2 * BLOCK
    params = SamplingParams(max_tokens=12, min_tokens=12)
    found, shown, hits = [], [], [engine.status().prefix_hit_tokens]
    for tenant in ("a", "b", "b", "a", ""):
        text, end = await read(engine.submit(Job("r", tokens, params, tenant=tenant, shared=shared)))
        found.append(text)
        shown.append(end.usage.cached_tokens)
        hits.append(engine.status().prefix_hit_tokens)
    everybodys, own = shared // BLOCK * BLOCK, (len(tokens) - 1) // BLOCK * BLOCK
    assert found == [found[0]] * 5
    assert shown == [0, 0, own - everybodys, own - everybodys, everybodys]
    assert [after - before for before, after in pairwise(hits)] == [0, everybodys, own, own, everybodys]
