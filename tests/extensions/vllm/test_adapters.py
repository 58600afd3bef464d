"""Which adapters vLLM is told of, in which order, and what is undone where it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from router.engine.base import AdapterArtifact
from router.errors import AdapterRejected, FailedPrecondition
from router.extensions.vllm.adapters import VllmAdapters
from router.extensions.vllm.staging import AdapterStaging
from tests.extensions.vllm.script import SITES, Script, artifact


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def adapters(script: Script, tmp_path: Path) -> VllmAdapters:
    return VllmAdapters(script, AdapterStaging(tmp_path, SITES, "F32"))


async def test_it_is_called_by_its_digest_and_comes_and_goes(
    script: Script, adapters: VllmAdapters, tmp_path: Path
) -> None:
    one = artifact()
    size = await adapters.load(one)
    assert await adapters.load(one) == size
    held = adapters.get(one.digest)
    assert held is not None
    assert (held.lora.name, held.lora.path) == (one.digest, str(tmp_path / one.digest))
    assert adapters.snapshot() == ((one.digest,), size)
    assert await adapters.unload(one.digest) == size
    assert await adapters.unload(one.digest) == 0
    assert (script.calls, os.listdir(tmp_path)) == ([("add", 1), ("remove", 1)], [])


async def test_what_vllm_refuses_is_removed_and_leaves_no_file(
    script: Script, adapters: VllmAdapters, tmp_path: Path
) -> None:
    script.rejects = "vLLM refuses it: too wide"
    with pytest.raises(AdapterRejected, match="too wide"):
        await adapters.load(artifact())
    assert (script.calls, script.held, os.listdir(tmp_path)) == ([("add", 1), ("remove", 1)], {}, [])
    assert adapters.get(artifact().digest) is None


async def test_an_activated_one_is_refused_with_a_reason(script: Script, adapters: VllmAdapters) -> None:
    with pytest.raises(AdapterRejected, match=r"activated LoRA.*engine torch"):
        await adapters.load(replace(artifact(), invocation_tokens=(1, 2)))
    assert script.calls == []


async def test_a_mixture_needs_its_parts(script: Script, adapters: VllmAdapters) -> None:
    one, two = artifact("one"), artifact("seven")
    mixture = AdapterArtifact("mixture", "", "5e" * 32, {}, ((one.digest, 0.5), (two.digest, 0.5)))
    await adapters.load(one)
    with pytest.raises(FailedPrecondition):
        await adapters.load(mixture)
    size = await adapters.load(two)
    assert await adapters.load(mixture) == 2 * size


async def test_the_guard_fills_all_slots_and_keeps_the_last(script: Script, adapters: VllmAdapters) -> None:
    await adapters.guard(3)
    assert script.calls[:4] == [("add", 1), ("add", 2), ("add", 3), ("pin", 3)]
    assert (set(script.held), script.pinned) == ({3}, {3})
    assert not any(adapters.snapshot())
