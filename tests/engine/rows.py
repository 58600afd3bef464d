"""A scheduler and rows for it, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from router.engine.base import Job, PoolingRequest
from router.engine.lora import DeviceSlots, HostStore, PackedAdapter
from router.engine.rows import AnswerRow, BlockPool, Chunk, PoolingRow
from router.engine.scheduler import Scheduler
from router.types import SamplingParams

ANY: Any = None


def make(
    slots: int = 4,
    running: int = 8,
    step: int = 32,
    blocks: int = 64,
    patience: float = 1.0,
    prefix_cache: bool = True,
    even_context: float = math.inf,
) -> Scheduler:
    host = HostStore()
    for digest in "abcdef":
        host.put(PackedAdapter(digest, [], torch.zeros(0, 3, dtype=torch.int64), [], 1))
    return Scheduler(
        BlockPool(blocks, prefix_cache=prefix_cache),
        DeviceSlots(slots, host, lambda adapter: adapter),
        base_digest="base",
        max_running=running,
        max_step_tokens=step,
        patience=patience,
        even_context=even_context,
    )


def row(
    length: int = 10,
    adapter: str | None = None,
    new: int = 4,
    priority: int = 0,
    background: bool = False,
    first: int = 0,
    tenant: str = "",
    share: float = 1.0,
    shared: int = 0,
    inactive: int = 0,
) -> AnswerRow:
    """`first`: the prompt's first token; others follow in order, so that it says what prefixes are shared."""
    tokens = list(range(first, first + length))
    job = Job(
        "r",
        tokens,
        SamplingParams(max_tokens=new),
        adapter,
        priority=priority,
        background=background,
        tenant=tenant,
        share=share,
        shared=shared,
    )
    return AnswerRow(stream=ANY, job=job, sampling=ANY, detokenizer=ANY, eos=frozenset(), inactive=inactive)


def step(scheduler: Scheduler) -> list[Chunk]:
    """One step, each sampled token 0."""
    chunks = scheduler.schedule()
    advance(scheduler, chunks)
    return chunks


def advance(scheduler: Scheduler, chunks: Sequence[Chunk]) -> None:
    """The chunks are computed, each sampled token is 0, and what is complete ends."""
    for chunk in chunks:
        scheduler.computed(chunk)
        one = chunk.row
        if isinstance(one, AnswerRow) and chunk.samples:
            one.tokens.append(0)
            if one.length_reached():
                scheduler.finish(one)
        elif isinstance(one, PoolingRow) and not one.remaining:
            scheduler.finish(one)


def pooling(length: int, background: bool = False) -> PoolingRow:
    """A pooling request."""
    request = PoolingRequest(list(range(length)), depth=1.0, background=background)
    return PoolingRow(stream=ANY, request=request, layer=1)
