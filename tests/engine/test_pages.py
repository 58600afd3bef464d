"""Weights side by side in large pages."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch

from router.engine.pages import LargePages, map_pages


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
