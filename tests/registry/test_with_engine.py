"""The registry over the real engine with a tiny model: swaps and loads under traffic change no token."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.engine.base import Prompt
from router.engine.torch_engine import TorchEngine
from router.registry.registry import Registry, RegistryOptions
from router.types import MixturePart, Turn
from tests.engine.tiny import answer, reference, save_adapter
from tests.engine.tiny import engine as make_engine
from tests.registry.life import eventually, is_ready, ref, states

pytestmark = pytest.mark.slow

PROMPT = list(range(40, 80))
NEW = 24


@pytest.fixture
async def torch_engine():
    made = make_engine("llama", slots=2, threads=1)
    yield made
    made.close()


@pytest.fixture
async def registry(torch_engine, root, tmp_path):
    options = RegistryOptions(settle_seconds=0.1, grace_seconds=0.2, state_dir=tmp_path / "state")
    made = Registry(torch_engine, [root], options)
    await made.start()
    yield made
    await made.close()


async def ask(engine: TorchEngine, registry: Registry, name: str) -> tuple[str, list[int]]:
    async with registry.lease(ref(name)) as lease:
        ids, _ = await answer(engine, PROMPT, lease.digest, max_tokens=NEW)
        return lease.digest, ids


async def test_swaps_and_loads_under_traffic_change_no_token(torch_engine, registry, root, tmp_path):
    expected = {}
    for name, seed in (("a", 1), ("b", 2)):
        tuned = save_adapter("llama", tmp_path / name, seed)
        expected[name] = {1: reference(tuned, PROMPT, NEW)}
        (tmp_path / name).rename(root / name)
    expected["a"][2] = reference(save_adapter("llama", tmp_path / "a2", 3), PROMPT, NEW)
    assert expected["a"][1] != expected["a"][2] != expected["b"][1]
    await eventually(lambda: len(registry.list()) == 2 and set(states(registry).values()) == {"ready"})
    answers: dict[str, set[tuple[str, tuple[int, ...]]]] = {"a": set(), "b": set()}
    stop = False

    async def traffic(name: str) -> None:
        while not stop:
            digest, ids = await ask(torch_engine, registry, name)
            answers[name].add((digest, tuple(ids)))

    asking = [asyncio.create_task(traffic(name)) for name in "aabb"]
    old = registry.get("a").digest
    (tmp_path / "a2/adapter_model.safetensors").rename(root / "a/adapter_model.safetensors")
    await eventually(lambda: registry.get("a").digest != old)
    for _ in range(3):
        await registry.unload(ref("b"))
    assert (await ask(torch_engine, registry, "a"))[1] == expected["a"][2]
    stop = True
    await asyncio.gather(*asking)
    assert {ids for _, ids in answers["b"]} == {tuple(expected["b"][1])}
    assert answers["a"]
    assert answers["a"] <= {
        (old, tuple(expected["a"][1])),
        (registry.get("a").digest, tuple(expected["a"][2])),
    }
    await eventually(lambda: old not in torch_engine.status().host_adapters)


async def test_a_mixture_goes_on_with_the_parts_it_began_with(torch_engine, registry, root, tmp_path):
    """One part is replaced, the other removed, while a request has them: not a token changes."""
    for name, seed in (("a", 1), ("b", 2)):
        save_adapter("llama", tmp_path / name, seed)
        (tmp_path / name).rename(root / name)
    save_adapter("llama", tmp_path / "a2", 3)
    await eventually(lambda: set(states(registry).values()) == {"ready"} and len(states(registry)) == 2)
    parts = (MixturePart(ref("a"), 0.75), MixturePart(ref("b"), -0.5))
    async with registry.lease_mixture(parts) as lease:
        before, _ = await answer(torch_engine, PROMPT, lease.digest, max_tokens=NEW)
        old = registry.get("a").digest
        (tmp_path / "a2/adapter_model.safetensors").rename(root / "a/adapter_model.safetensors")
        (root / "b").rename(tmp_path / "b")
        await eventually(lambda: registry.get("a").digest != old and len(registry.list()) == 1)
        assert (await answer(torch_engine, PROMPT, lease.digest, max_tokens=NEW))[0] == before
    await eventually(lambda: torch_engine.status().host_adapters == (registry.get("a").digest,))
    async with registry.lease_mixture(parts[:1]) as lease:
        assert (await answer(torch_engine, PROMPT, lease.digest, max_tokens=NEW))[0] != before


async def test_probes_run_through_the_engine(torch_engine, registry, root, tmp_path):
    for name, expect in (("wrong", "surely not this"), ("right", "")):
        save_adapter("llama", tmp_path / name, 1)
        lines = [{"prompt": "hello", "expect": expect, "max_tokens": 4}] if expect else []
        (tmp_path / name / "probes.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / name).rename(root / name)
    await eventually(is_ready(registry, "right"))
    await eventually(lambda: states(registry).get("wrong@0") == "quarantined")
    assert "probe 1 of 1 failed" in registry.get("wrong").error
    await eventually(lambda: torch_engine.status().host_adapters == (registry.get("right").digest,))


async def test_an_activated_lora_that_never_acts_on_a_conversation_says_so(
    torch_engine, registry, root, tmp_path
):
    end = torch_engine.encode(Prompt((Turn("user", "?\nAnswer:"),)))[-4:]
    for name in ("late", "never", "proven"):
        save_adapter("llama", tmp_path / name, 1, alora_invocation_tokens=end)
        template = "{prompt}\\nAnswer:" if name == "late" else "{prompt}"
        (tmp_path / name / "adapter.toml").write_text(f'[prompt]\ntemplate = "{template}"\n')
        if name == "proven":
            (tmp_path / name / "probes.jsonl").write_text('{"prompt": "x", "expect": "y"}')
        (tmp_path / name).rename(root / name)
    await eventually(lambda: list(states(registry).values()) == ["ready", "ready", "quarantined"])
    assert "a probe cannot run: input: the adapter acts from" in registry.get("proven").error
    assert registry.get("late").invocation_tokens == registry.get("never").invocation_tokens == tuple(end)
    assert registry.get("late").notes == ()
    (note,) = registry.get("never").notes
    assert note.startswith(
        "adapter_config.json alora_invocation_tokens: conversations do not have these tokens"
    )


async def test_a_constraint_that_no_answer_here_can_keep_to_is_refused_at_load(
    torch_engine, registry, root, tmp_path
):
    for name, line in (("bad", 'regex = "a("'), ("good", 'choices = ["yes", "no"]')):
        save_adapter("llama", tmp_path / name, 1)
        (tmp_path / name / "adapter.toml").write_text(f"[generation]\n{line}\n")
        (tmp_path / name).rename(root / name)
    await eventually(is_ready(registry, "good"))
    await eventually(lambda: states(registry).get("bad@0") == "quarantined")
    assert "[generation] regex: unclosed group, at character 1" in registry.get("bad").error


async def test_probes_hold_the_adapter_and_not_the_base_to_its_choices(
    torch_engine, registry, root, tmp_path
):
    for name, expect in (("right", "surely not this"), ("wrong", "surely this")):
        save_adapter("llama", tmp_path / name, 1)
        (tmp_path / name / "adapter.toml").write_text('[generation]\nchoices = ["surely not this"]\n')
        probe = {"prompt": "hello", "expect": expect, "match": "exact", "max_tokens": 30}
        (tmp_path / name / "probes.jsonl").write_text(json.dumps(probe))
        (tmp_path / name).rename(root / name)
    await eventually(is_ready(registry, "right"))
    await eventually(lambda: states(registry).get("wrong@0") == "quarantined")
    assert "expected exact 'surely this', got 'surely not this'" in registry.get("wrong").error
