"""Rows never see each other, nor what was left in memory: whatever is given back is filled with NaN here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from router.engine.lora import HostStore
from router.engine.rows import BlockPool, CacheAllocation
from router.engine.torch_engine import TorchEngine
from router.errors import RouterError
from tests.engine import tiny

pytestmark = pytest.mark.slow
ROWS, CONTEXT = 12, 256  # the most rows that this engine runs, as long as the base reads
NEW = 24


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def made(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    """Room for all rows at once."""
    engine = tiny.engine(
        "llama", native=request.param, max_running=ROWS, cache_tokens=ROWS * CONTEXT, max_step_tokens=128
    )
    yield engine
    engine.close()


def caches(made: TorchEngine) -> list[torch.Tensor]:
    """Keys and values of every layer [blocks, heads, BLOCK, dim]."""
    backbone: Any = made._loop._runner._backbone  # type: ignore[union-attr]
    return [cache for layer in backbone._model.layers for cache in (layer.k_cache, layer.v_cache)]


@pytest.fixture
def poisoned(made: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """NaN in every block that nobody has, now and as blocks come and go, and in adapters that are unloaded.

    The list counts blocks that were filled.
    """
    held, filled = caches(made), [0]
    take, release, pop = BlockPool._take, BlockPool.release, HostStore.pop

    def fill(blocks: list[int]) -> None:
        filled[0] += len(blocks)
        for cache in held:
            cache[blocks] = torch.nan

    def taken(pool: BlockPool) -> int:
        block = take(pool)
        fill([block])
        return block

    def released(pool: BlockPool, allocation: CacheAllocation) -> None:
        blocks = list(allocation.blocks)
        release(pool, allocation)
        fill([block for block in blocks if block in pool._free])

    def popped(store: HostStore, digest: str) -> int:
        adapter = store.get(digest)
        if adapter is not None:
            adapter.slab.fill_(0xFF)  # NaN, as four bytes and as two
        return pop(store, digest)

    monkeypatch.setattr(BlockPool, "_take", taken)
    monkeypatch.setattr(BlockPool, "release", released)
    monkeypatch.setattr(HostStore, "pop", popped)
    fill(list(range(held[0].shape[0])))
    return filled


def prompts(length: int) -> list[list[int]]:
    """One for each row, none like another from its first token on."""
    return [[(7 * row + 3 * i + i * i * (row + 1)) % 250 for i in range(length)] for row in range(ROWS)]


async def test_the_largest_batch_of_the_longest_contexts_answers_as_each_alone(
    made: TorchEngine, poisoned: list[int], tmp_path: Path
) -> None:
    tiny.save_adapter("llama", tmp_path / "a", 1)
    adapter = tiny.artifact(tmp_path / "a", made)
    await made.load(adapter)
    asked = [
        (tokens, adapter.digest if row % 2 else None) for row, tokens in enumerate(prompts(CONTEXT - NEW))
    ]
    options = {"max_tokens": NEW, "min_tokens": NEW}
    alone = [(await tiny.answer(made, *one, **options))[0] for one in asked]
    for _ in range(2):  # the second time some prompts are in the cache, and blocks were others' before
        together = await asyncio.gather(*(tiny.answer(made, *one, **options) for one in asked))
        assert [ids for ids, _ in together] == alone
    assert len({tuple(ids) for ids in alone}) > ROWS // 2  # else a mix would not show
    assert poisoned[0] > made.status().cache_blocks


async def test_an_adapter_that_is_gone_is_in_no_answer(
    made: TorchEngine, poisoned: list[int], tmp_path: Path
) -> None:
    adapters = []
    for seed in (1, 2):
        tiny.save_adapter("llama", tmp_path / str(seed), seed)
        adapters.append(tiny.artifact(tmp_path / str(seed), made))
    tokens = list(range(40, 90))
    expected = {}
    for adapter in adapters:
        await made.load(adapter)
        expected[adapter.digest] = (await tiny.answer(made, tokens, adapter.digest, max_tokens=NEW))[0]
    first, second = adapters
    await made.unload(first.digest)
    assert (await tiny.answer(made, tokens, second.digest, max_tokens=NEW))[0] == expected[second.digest]
    await made.load(first)  # from its own bytes: what was filled with NaN is not used again
    assert (await tiny.answer(made, tokens, first.digest, max_tokens=NEW))[0] == expected[first.digest]
    assert expected[first.digest] != expected[second.digest]


async def test_nan_in_a_block_that_is_in_use_would_show(made: TorchEngine) -> None:
    """The control: a prompt that is known, and what is known of it spoilt."""
    tokens = list(range(40, 90))
    good = (await tiny.answer(made, tokens, max_tokens=NEW))[0]
    for cache in caches(made):
        cache.fill_(torch.nan)
    try:
        found = (await tiny.answer(made, tokens, max_tokens=NEW))[0]
    except RouterError:
        return
    assert found != good
