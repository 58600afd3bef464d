"""Shortages under one name, and how much KV cache fits on a device."""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine import resources as threads
from router.engine import torch_engine
from router.engine.generic import GenericBackbone
from router.engine.ops import BLOCK
from router.engine.resources import (
    RESERVED_SHARE,
    DeviceMemory,
    LargePages,
    adapters_at_most,
    cgroup_cpus,
    in_ending_thread,
    map_pages,
    shortage_as_memory_error,
    tokens_that_fit,
    usable_cpus,
    use_one_thread,
)
from router.engine.runner import PackedBackbone, fill_with_cache
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.errors import ConfigError
from tests.engine import tiny

GB, MB = 1 << 30, 1 << 20
CPU = torch.device("cpu")


def raised(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(1 << 50, dtype=torch.uint8),
        raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 84.00 MiB")),
        raised(RuntimeError("CUDA error: out of memory")),
        raised(MemoryError("from Python itself")),
    ],
)
def test_every_shortage_is_a_memory_error(work: Callable[[], None]) -> None:
    with pytest.raises(MemoryError), shortage_as_memory_error():
        work()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), shortage_as_memory_error():
        raised(RuntimeError("shape '[2]' is invalid"))()


def test_what_fits_beside_an_8b_base_on_a_card_of_80_gb() -> None:
    """16 GB of weights, 2 for a step, 2 for adapters, 4 in reserve; a token takes 128 KiB."""
    memory = DeviceMemory(total=80 * GB, free=62 * GB, reserved=18 * GB, peak=18 * GB)
    tokens = tokens_that_fit(memory, 128 << 10, 2 * GB)
    assert tokens == (62 - 2 - 4) * GB // (128 << 10)


@given(
    total=st.integers(1 * GB, 200 * GB),
    used=st.floats(0, 1),
    cached=st.floats(0, 0.3),
    token_bytes=st.integers(64, 1 * MB),
    adapters=st.integers(0, 4 * GB),
)
def test_no_token_more_would_fit(
    total: int, used: float, cached: float, token_bytes: int, adapters: int
) -> None:
    peak = int(total * used)
    reserved = min(total, peak + int(total * cached))
    memory = DeviceMemory(total, total - reserved, reserved, peak)
    left = total - peak - adapters - int(total * RESERVED_SHARE)
    try:
        tokens = tokens_that_fit(memory, token_bytes, adapters)
    except ConfigError:
        assert left < (256 + BLOCK) * token_bytes
        return
    assert tokens % BLOCK == 0
    assert tokens * token_bytes <= left < (tokens + BLOCK) * token_bytes


def test_too_little_says_what_takes_it() -> None:
    memory = DeviceMemory(total=16 * GB, free=100 * MB, reserved=15 * GB, peak=15 * GB)
    with pytest.raises(
        ConfigError,
        match=r"leaves 100 MB of the device's 16384 MB, .*: 2048 MB are for adapters \(see slots, max_rank, "
        r"host_memory_mb\) and 32 MB for the smallest KV cache",
    ):
        tokens_that_fit(memory, 128 << 10, 2 * GB)


def test_adapters_take_no_more_than_slots_or_host_memory_hold() -> None:
    sites = {"q": (4096, 4096), "k": (1024, 4096)}
    one = 64 * (8192 + 5120) * 2
    assert adapters_at_most(sites, 4, 64, 2, 1 * GB) == 4 * one
    assert adapters_at_most(sites, 4, 64, 2, 3 * one) == 3 * one


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
async def test_a_cache_of_another_size_changes_no_answer(native: bool) -> None:
    prompt, found = list(range(100)), []
    for blocks in (None, 200):
        made = tiny.engine("llama", native=native, prefix_cache=False)
        if blocks:
            made._loop._runner._backbone.resize(blocks)
        found.append((await tiny.answer(made, prompt, max_tokens=20))[0])
        made.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["packed", "generic"])
def test_the_cache_grows_to_what_a_step_leaves(kind: str) -> None:
    model, ops, steps = tiny.model("llama"), TorchOps(), []
    made: Any = (
        PackedBackbone(*tiny.parts(model), ops, 2, 256)
        if kind == "packed"
        else GenericBackbone(model, ops, 2)
    )
    small = made.cache_bytes()
    forward = made.forward

    def seen(tokens: torch.Tensor, plan: Any, lora: Any, last: torch.Tensor) -> torch.Tensor:
        steps.append((len(tokens), len(last)))
        logits: torch.Tensor = forward(tokens, plan, lora, last)
        return logits

    def measure(device: torch.device, work: Callable[[], None]) -> DeviceMemory:
        made.forward = seen
        work()
        made.forward = forward
        return DeviceMemory(total=0, free=20 * MB, reserved=5 * MB, peak=4 * MB)

    blocks = fill_with_cache(made, 30, 7, 1 * MB, CPU, measure)
    assert steps == [(30, 7)]
    assert blocks == 20 * MB // (small // 2)
    assert made.cache_bytes() == blocks * (small // 2)


async def test_an_engine_whose_cache_fills_the_device_answers_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(device: torch.device, work: Callable[[], None]) -> DeviceMemory:
        work()
        return DeviceMemory(total=0, free=13 * MB, reserved=0, peak=0)

    prompt = list(range(60))
    plain = tiny.engine("llama", cache_tokens="auto")
    expected, _ = await tiny.answer(plain, prompt, max_tokens=20)
    assert plain.status().cache_blocks == 32768 // BLOCK
    plain.close()
    monkeypatch.setattr(TorchEngine, "_fills", True)
    monkeypatch.setattr(torch_engine, "measure_cuda", measure)
    made = tiny.engine("llama", cache_tokens="auto", host_memory_mb=16, slots=2, max_step_tokens=32)
    found, _ = await tiny.answer(made, prompt, max_tokens=20)
    status = made.status()
    made.close()
    assert found == expected
    # 512 bytes a token: two layers of k and v, two heads of 16, in float32
    adapters = 2 * adapters_at_most(made.info.sites, 2, 64, 4, 16 * MB)
    assert status.cache_blocks == (13 * MB - adapters) // (512 * BLOCK)
    assert made.info.context_length == 256


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3.5),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
        ({"sys/fs/cgroup/cpu.max": ""}, None),
        ({"sys/fs/cgroup/cpu.max": "1 0\n"}, None),
        ({}, None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_what_a_cgroup_pays_for(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cgroup_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(None, 4), (0.5, 1), (2.5, 3), (64.0, 4)])
def test_usable_cpus(monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    assert usable_cpus() == cpus


def test_one_thread_is_for_the_calling_thread_only() -> None:
    seen: dict[str, int] = {}

    def inside() -> None:
        use_one_thread()
        seen["inside"] = torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for task in (inside, lambda: seen.update(later=torch.get_num_threads())):
            thread = threading.Thread(target=task)
            thread.start()
            thread.join()
        assert (seen["inside"], seen["later"], torch.get_num_threads()) == (1, 2, 2)
    finally:
        torch.set_num_threads(before)


def test_a_task_in_an_ending_thread_raises_here_and_leaves_no_thread() -> None:
    ran: list[threading.Thread] = []

    def fine() -> None:
        ran.append(threading.current_thread())

    def bad() -> None:
        fine()
        raise KeyboardInterrupt

    in_ending_thread(fine)
    with pytest.raises(KeyboardInterrupt):
        in_ending_thread(bad)
    assert all(thread is not threading.current_thread() and not thread.is_alive() for thread in ran)


def side_by_side(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    pages = LargePages(chunk=4096)
    return [pages.copy(tensor) for tensor in tensors]


def large_pages() -> int:
    """KiB of this process in large pages."""
    text = Path("/proc/self/smaps").read_text()
    return sum(int(kib) for kib in re.findall(r"^AnonHugePages:\s+(\d+)", text, re.MULTILINE))


def test_copies_equal_lie_in_order_and_start_cache_lines():
    tensors = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.empty(0), torch.randn(4, 4).t()]
    copies = side_by_side(tensors)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True))
    assert all(
        copy.is_contiguous() and copy.dtype == t.dtype for copy, t in zip(copies, tensors, strict=True)
    )
    addresses = [copy.data_ptr() for copy in copies if copy.numel()]
    assert addresses == [addresses[0], addresses[0] + 64, addresses[0] + 128]
    assert addresses[0] % 64 == 0


@pytest.mark.slow
def test_memory_outlives_its_source_and_siblings():
    copies = side_by_side([torch.full((1000,), float(i)) for i in range(5)])
    last = copies[-1]
    del copies
    gc.collect()
    side_by_side([torch.zeros(5000)])
    assert torch.equal(last, torch.full((1000,), 4.0))


def test_more_than_a_chunk():
    pages = LargePages(chunk=256)
    values = [torch.arange(n, dtype=torch.float32) for n in (10, 60, 500, 3)]
    copies = [pages.copy(value) for value in values]
    assert all(torch.equal(copy, value) for copy, value in zip(copies, values, strict=True))


@pytest.mark.skipif(
    "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    else True,
    reason="the system has no transparent large pages",
)
def test_large_pages_are_used():
    before = large_pages()
    kept = LargePages().copy(torch.ones(8 << 20))
    assert large_pages() - before >= 16 << 10
    assert kept[-1] == 1


def test_more_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError, match="bytes"):
        map_pages(1 << 62)
