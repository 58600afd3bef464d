"""Mixtures in memory: made once, bounded, first to go, and nothing lost when their parts change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.engine.base import digest_of_mixture
from router.errors import (
    AdapterNotFound,
    AdapterRejected,
    Draining,
    FailedPrecondition,
    Overloaded,
    ResourceExhausted,
)
from router.ports import Lease
from router.registry.registry import Registry
from router.types import MixturePart
from tests.registry.life import SIZE, drop, eventually, host_bytes, leases, ref, weights
from tests.registry.tiny import lora_tensors, safetensors, write_adapter

pytestmark = pytest.mark.slow


def parts(*weighed: tuple[str, float]) -> tuple[MixturePart, ...]:
    return tuple(MixturePart(ref(name), weight) for name, weight in weighed)


HALVES = parts(("a", 0.5), ("b", 0.5))


@pytest.fixture
async def registry(root, start_registry):
    drop(root, "a", description="the first")
    drop(root, "b", value=2.0)
    return await start_registry(max_mixtures=3)


@asynccontextmanager
async def all_of(
    registry: Registry, *mixtures: tuple[MixturePart, ...], tenant: str = ""
) -> AsyncIterator[None]:
    """Hold some at once."""
    async with registry.lease_mixture(mixtures[0], tenant):
        if len(mixtures) == 1:
            yield
        else:
            async with all_of(registry, *mixtures[1:], tenant=tenant):
                yield


async def digest(registry: Registry, mixture: tuple[MixturePart, ...]) -> str:
    async with registry.lease_mixture(mixture) as lease:
        return lease.digest


def weighing(*values: float) -> list[tuple[MixturePart, ...]]:
    return [parts(("a", value), ("b", 0.5)) for value in values]


async def test_it_is_made_of_the_digests_and_weights_of_its_parts(registry, engine):
    async with registry.lease_mixture(parts(("a", 0.7), ("b", -0.3))) as lease:
        expected = ((registry.get("a").digest, 0.7), (registry.get("b").digest, -0.3))
        assert lease == replace(lease, ref=ref("a"), domain="", task="")
        assert lease.digest == digest_of_mixture(expected)
        assert engine.held[lease.digest].parts == expected
        assert leases(registry) == 3
    assert leases(registry) == 0


def test_digests_differ_by_part_weight_and_order():
    said = [
        (("x", 0.5), ("y", 0.5)),
        (("y", 0.5), ("x", 0.5)),
        (("x", 0.5), ("y", 0.501)),
        (("x", 0.5), ("y", -0.5)),
        (("x", 0.5),),
        (("x", 0.5), ("y", 0.5), ("z", 0.5)),
    ]
    assert len(set(map(digest_of_mixture, said))) == len(said)
    assert digest_of_mixture([("x", 0.1 + 0.2)]) == digest_of_mixture([("x", 0.3)])


async def test_prompt_and_sampling_are_the_first_ones(root, start_registry):
    for name in "ab":
        folder = drop(root, name)
        said = f'[prompt]\nsystem = "As {name}."\n[generation]\nmax_tokens = {7 if name == "a" else 9}\n'
        (folder / "adapter.toml").write_text(said)
    registry = await start_registry()
    found: dict[str, Lease] = {}
    for order in ("ab", "ba"):
        async with registry.lease_mixture(parts(*((name, 0.5) for name in order))) as lease:
            found[order] = lease
    assert [(f.prompt.system, f.generation.max_tokens) for f in found.values()] == [
        ("As a.", 7),
        ("As b.", 9),
    ]


async def test_many_requests_share_one_and_it_stays_for_the_next(registry, engine):
    digests = await asyncio.gather(*(digest(registry, HALVES) for _ in range(20)))
    assert len(set(digests)) == 1
    assert await digest(registry, HALVES) == digests[0]
    assert engine.loads.count("mixture") == 1
    assert engine.unloads == []


async def test_it_is_no_version(registry):
    before = [str(info.ref) for info in registry.list()]
    async with registry.lease_mixture(HALVES):
        assert [str(info.ref) for info in registry.list()] == before
        assert [profile.name for profile in registry.profiles()] == ["a", "b"]
        with pytest.raises(AdapterNotFound):
            registry.get("mixture")


async def test_cold_parts_are_loaded_first(root, engine, start_registry):
    drop(root, "a")
    drop(root, "b", value=2.0)
    registry = await start_registry(preload=False)
    assert engine.loads == []
    await digest(registry, HALVES)
    assert engine.loads == ["a", "b", "mixture"]


# -- Bounds.


async def test_ten_thousand_weightings_are_three_in_memory(registry, engine):
    for step in range(200):
        await digest(registry, parts(("a", step / 1000), ("b", 1.0)))
    assert engine.loads.count("mixture") == 200
    await eventually(lambda: len(engine.held) == 2 + 3)
    assert registry.mixtures() == 3
    assert host_bytes(registry) == 5 * SIZE


async def test_more_than_may_be_in_use_are_refused_and_nobody_loses_one(registry, engine):
    held = weighing(0.1, 0.2, 0.3)
    async with all_of(registry, *held):
        with pytest.raises(Overloaded, match=r"3 mixtures are in use") as caught:
            await digest(registry, HALVES)
        assert caught.value.metadata == {"bound": "mixtures"}
        assert await asyncio.gather(*(digest(registry, mixture) for mixture in held))
        assert engine.unloads == []
    assert await digest(registry, HALVES)
    assert engine.unloads == ["mixture"]


async def test_the_least_recently_used_goes_first(registry, engine):
    first, second, third = weighing(0.1, 0.2, 0.3)
    digests = [await digest(registry, mixture) for mixture in (first, second, third, first)]
    await digest(registry, HALVES)
    await eventually(lambda: digests[1] not in engine.held)
    assert digests[0] in engine.held
    assert digests[2] in engine.held


async def test_a_tenant_uses_half_of_them_at_once(root, start_registry):
    drop(root, "a")
    drop(root, "b", value=2.0)
    registry = await start_registry(max_mixtures=4)
    one, two, three, four = weighing(0.1, 0.2, 0.3, 0.4)
    async with all_of(registry, one, two, tenant="acme"):
        with pytest.raises(Overloaded, match="2 mixtures of this tenant are in use"):
            async with registry.lease_mixture(three, "acme"):
                pass
        async with registry.lease_mixture(one, "acme"), all_of(registry, three, four, tenant="bravo"):
            pass
    async with registry.lease_mixture(three, "acme"):
        pass


async def test_a_rank_above_the_largest_is_refused_before_anything_is_loaded(root, engine, start_registry):
    for name, rank in (("a", 4), ("b", 5)):
        write_adapter(root / name, {"r": rank}, safetensors(lora_tensors(rank)))
    registry = await start_registry(preload=False, max_rank=8)
    await eventually(lambda: [info.rank for info in registry.list()] == [4, 5])
    with pytest.raises(FailedPrecondition, match=r"rank 4 \+ 5 = 9, and 8 are served \(max_rank\)"):
        await digest(registry, HALVES)
    assert engine.loads == []
    assert await digest(registry, parts(("a", 2.0)))


async def test_an_activated_lora_is_refused(registry, monkeypatch):
    class Activated:
        rank, invocation_tokens = 4, (1, 2)

    monkeypatch.setattr(type(registry.find("b")), "serving", Activated())
    with pytest.raises(FailedPrecondition, match="adapter a@0 is an activated LoRA"):
        registry.check_mixture(HALVES)


async def test_a_quarantined_or_missing_part_is_told(root, start_registry):
    drop(root, "a")
    (drop(root, "b", value=2.0) / "adapter_config.json").write_text("{")
    registry = await start_registry()
    await eventually(lambda: len(registry.list()) == 2)
    with pytest.raises(AdapterRejected, match="b@0 is quarantined"):
        await digest(registry, HALVES)
    with pytest.raises(AdapterNotFound):
        await digest(registry, parts(("a", 0.5), ("ghost", 0.5)))
    assert leases(registry) == 0


# -- Memory.


async def test_it_makes_room_before_any_adapter(root, engine, start_registry):
    for number, name in enumerate("abc"):
        drop(root, name, value=number + 1.0)
    registry = await start_registry(preload=False, host_memory_bytes=5 * SIZE + 100)
    await digest(registry, HALVES)
    async with registry.lease(ref("c")):
        pass
    await digest(registry, parts(("a", 0.1)))
    for count, name in enumerate("de", 1):
        drop(root, name, value=count + 7.0)
        await eventually(lambda count=count: len(registry.list()) == 3 + count)
        async with registry.lease(ref(name)):  # the second takes the place of what was used last of all
            assert engine.unloads == ["mixture"] * count


async def test_no_room_is_told_and_leaves_nothing(root, engine, start_registry):
    drop(root, "a")
    drop(root, "b", value=2.0)
    registry = await start_registry(host_memory_bytes=3 * SIZE)
    with pytest.raises(ResourceExhausted, match="nothing can be evicted"):
        await digest(registry, HALVES)
    assert (leases(registry), host_bytes(registry)) == (0, 2 * SIZE)


async def test_a_failure_is_told_to_all_who_wait_and_the_next_tries_again(registry, engine):
    engine.faults["mixture"] = FailedPrecondition("a part is not loaded")
    results = await asyncio.gather(*(digest(registry, HALVES) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["a part is not loaded"] * 3
    engine.faults.clear()
    assert await digest(registry, HALVES)
    assert leases(registry) == 0


async def test_who_gives_up_takes_it_from_nobody(registry, engine):
    engine.loading.clear()
    waiting = [asyncio.create_task(digest(registry, HALVES)) for _ in range(3)]
    await eventually(lambda: "mixture" in engine.loads)
    waiting[0].cancel()
    engine.loading.set()
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert len(set(others)) == 1
    assert engine.loads.count("mixture") == 1
    assert leases(registry) == 0


async def test_what_nobody_waits_for_any_more_is_not_kept(registry, engine):
    """Its parts may have gone meanwhile."""
    engine.loading.clear()
    waiting = asyncio.create_task(digest(registry, HALVES))
    await eventually(lambda: "mixture" in engine.loads)
    waiting.cancel()
    await asyncio.wait({waiting})
    engine.loading.set()
    await eventually(lambda: engine.unloads == ["mixture"])
    assert (registry.mixtures(), host_bytes(registry)) == (0, 2 * SIZE)
    assert await digest(registry, HALVES)


# -- Parts that change.


async def test_a_part_replaced_meanwhile_stays_for_those_who_have_it(registry, engine, root):
    old = registry.get("a").digest
    async with registry.lease_mixture(HALVES) as before:
        (root / "a/adapter_model.safetensors").write_bytes(weights(7.0))
        await eventually(lambda: registry.get("a").digest != old)
        assert before.digest in engine.held
        assert old in engine.held
        async with registry.lease_mixture(HALVES) as now:
            assert now.digest != before.digest
            assert engine.held[now.digest].parts[0] == (registry.get("a").digest, 0.5)
        assert before.digest in engine.held
    await eventually(lambda: old not in engine.held)
    await eventually(lambda: before.digest not in engine.held)


async def test_a_part_removed_meanwhile_stays_for_those_who_have_it(registry, engine, root):
    async with registry.lease_mixture(HALVES) as lease:
        (root / "a").rename(root.parent / "a")
        await eventually(lambda: len(registry.list()) == 1)
        with pytest.raises(AdapterNotFound):
            await digest(registry, HALVES)
        assert lease.digest in engine.held
    await eventually(lambda: len(engine.held) == 1)


async def test_unloading_a_part_waits_for_it_and_takes_it_along(registry, engine):
    async with registry.lease_mixture(HALVES) as lease:
        unload = asyncio.create_task(registry.unload(ref("a")))
        await asyncio.sleep(0.05)
        assert not unload.done()
        assert lease.digest in engine.held
    assert (await unload)[1] == SIZE
    await eventually(lambda: len(engine.held) == 1)
    assert await digest(registry, HALVES) == lease.digest


async def test_after_the_end_nothing_is_made(registry, engine):
    engine.loading.clear()
    waiting = asyncio.create_task(digest(registry, HALVES))
    await eventually(lambda: "mixture" in engine.loads)
    await registry.close()
    with pytest.raises(Draining):
        await waiting
    engine.loading.set()
    with pytest.raises(Draining):
        await digest(registry, parts(("a", 0.9), ("b", 0.1)))
