from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.engine.blocks import Allocation, BlockPool, Chain, chain_root
from router.engine.ops import BLOCK

ROOT = chain_root("base", None)


def allocate(pool: BlockPool, prompt: list[int], total: int, root: bytes = ROOT) -> Allocation:
    allocation = pool.allocate(Chain(root), prompt, total)
    assert allocation is not None
    return allocation


def compute(pool: BlockPool, allocation: Allocation, tokens: list[int], root: bytes = ROOT) -> None:
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


def test_whole_prompt_is_never_taken_from_the_cache() -> None:
    pool, prompt = BlockPool(8), list(range(32))
    compute(pool, allocate(pool, prompt, 40), prompt)
    assert allocate(pool, prompt, 40).cached_tokens == 16


def test_other_adapter_never_sees_the_prefix() -> None:
    pool, prompt = BlockPool(16), list(range(40))
    compute(pool, allocate(pool, prompt, 40), prompt)
    for root in (chain_root("base", "adapter"), chain_root("other base", None)):
        assert allocate(pool, prompt, 33, root).cached_tokens == 0


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


def test_no_room_changes_nothing() -> None:
    pool = BlockPool(2)
    assert pool.allocate(Chain(ROOT), [1], 3 * BLOCK) is None
    assert pool.free == 2


def test_grows_block_by_block_until_there_is_none() -> None:
    pool, prompt = BlockPool(3), list(range(20))
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


def test_prefix_cache_off() -> None:
    pool, prompt = BlockPool(8, prefix_cache=False), list(range(40))
    compute(pool, allocate(pool, prompt, 40), prompt)
    assert allocate(pool, prompt, 40).cached_tokens == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 50), st.integers(0, 30), st.booleans()),
        max_size=40,
    )
)
def test_blocks_are_never_shared_by_different_tokens(work: list[tuple[int, int, int, bool]]) -> None:
    pool = BlockPool(12)
    held: list[tuple[Allocation, list[int]]] = []
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
