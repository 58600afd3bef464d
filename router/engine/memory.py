"""Memory: shortages under one name, and what a device has left for the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from router.engine.model.backbone import Backbone
from router.engine.ops import BLOCK, AttentionPlan
from router.errors import ConfigError

CPU_CACHE_TOKENS = 32768  # of `cache_tokens = "auto"` where there is no card whose memory is ours alone
RESERVED_SHARE = 0.05  # of the device: fragments, sampling, what libraries take later
LEAST_CACHE_TOKENS = 256
_SHORT = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def shortage_as_memory_error() -> Iterator[None]:
    """What torch raises where memory runs out, a RuntimeError of many kinds, becomes MemoryError."""
    try:
        yield
    except RuntimeError as error:
        short = isinstance(error, torch.OutOfMemoryError) or any(
            said in str(error).lower() for said in _SHORT
        )
        if not short:
            raise
        raise MemoryError(str(error)) from error


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device after the largest step, in bytes."""

    total: int
    free: int  # what the driver has left
    reserved: int  # what torch holds, used or not
    peak: int  # most that was in use at once


Measure = Callable[[torch.device, Callable[[], None]], DeviceMemory]


def measure_cuda(device: torch.device, work: Callable[[], None]) -> DeviceMemory:
    """What `work` takes of a CUDA device."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        total, free, torch.cuda.memory_reserved(device), torch.cuda.max_memory_allocated(device)
    )


def fill_with_cache(
    backbone: Backbone, tokens: int, scored: int, adapter_bytes: int, device: torch.device, measure: Measure
) -> int:
    """Give the backbone the largest KV cache that fits beside everything else -> blocks.

    It has one for `tokens` tokens now, which are those of the largest step; `scored` of them are scored.
    Raises ConfigError where not even the smallest fits.
    """
    memory = measure(device, lambda: largest_step(backbone, tokens, scored, device))
    token_bytes = backbone.cache_bytes() // (blocks_of(tokens) * BLOCK)
    blocks = tokens_that_fit(memory, token_bytes, adapter_bytes) // BLOCK
    backbone.resize(blocks)
    return blocks


def tokens_that_fit(memory: DeviceMemory, token_bytes: int, adapter_bytes: int) -> int:
    """Tokens of a KV cache, whole blocks, with room left for adapters and a reserve.

    `token_bytes`: of one token in all layers. `adapter_bytes`: of all adapters that may be on the device.
    Raises ConfigError where not even the smallest cache fits.
    """
    unused = memory.free + memory.reserved - memory.peak
    room = unused - adapter_bytes - int(memory.total * RESERVED_SHARE)
    tokens = max(0, room) // token_bytes // BLOCK * BLOCK
    if tokens < LEAST_CACHE_TOKENS:
        raise ConfigError(
            f"the base leaves {_mb(unused)} MB of the device's {_mb(memory.total)} MB, which is too little: "
            f"{_mb(adapter_bytes)} MB are for adapters (see slots, max_rank, host_memory_mb) and "
            f"{_mb(LEAST_CACHE_TOKENS * token_bytes)} MB for the smallest KV cache"
        )
    return tokens


def adapters_at_most(
    sites: Mapping[str, tuple[int, int]], slots: int, rank: int, itemsize: int, host: int
) -> int:
    """Bytes of the adapters on the device at most: none is there that is not in the `host` bytes, too.

    `sites`: (out_features, in_features) of each linear layer; `rank`: the largest that is accepted.
    """
    largest = sum(rank * (inputs + outputs) for outputs, inputs in sites.values()) * itemsize
    return min(slots * largest, host)


def blocks_of(tokens: int) -> int:
    """Blocks of the KV cache for so many tokens."""
    return -(-tokens // BLOCK)


def largest_step(backbone: Backbone, tokens: int, scored: int, device: torch.device) -> None:
    """Run a prompt of `tokens` tokens, `scored` of them scored: the device shows what a step takes."""

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    bounds, places = [0, tokens], ints(list(range(tokens)))
    blocks = ints(list(range(blocks_of(tokens))))[None]
    plan = AttentionPlan(ints(bounds), ints([tokens]), blocks, places, places, tokens, bounds, [tokens])
    last = torch.arange(scored, device=device) % tokens
    with torch.inference_mode():
        backbone.forward(torch.zeros(tokens, dtype=torch.int64, device=device), plan, None, last).float()


def _mb(count: int) -> int:
    return count >> 20
