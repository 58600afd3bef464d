"""The machine: its CPUs and threads, its memory and large pages, and what a device has left for the KV cache.

torch's OpenMP makes a pool of threads for every thread that has used a parallel operation. As soon as all
of them together are more than there are CPUs, each parallel region begins with a wake-up by the system: some
40 microseconds, hundreds of times a step. So only the engine's thread has a pool: what loads the base does it
in a thread that ends, and its pool with it; what packs adapters does it alone. (Native operations have a team
of their own, which knows of no pools.)
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from router.engine.ops import BLOCK
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
            text in str(error).lower() for text in _SHORT
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


def _mb(count: int) -> int:
    return count >> 20


_QUOTAS = (("/sys/fs/cgroup/cpu.max", ""), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "cpu.cfs_period_us"))


def usable_cpus() -> int:
    """CPUs that this process may use: what its affinity leaves, and no more than its cgroup pays for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """CPUs of this process's cgroup, such as 0.5; None if it is not limited."""
    for quota, period in _QUOTAS:
        path = root / quota.lstrip("/")
        try:
            words = path.read_text().split()
            if period:
                words.append(path.with_name(period).read_text())
            if words[0] in ("max", "-1"):
                return None
            return int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return None


def in_ending_thread(task: Callable[[], None]) -> None:
    """Run it in a thread of its own and wait; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            task()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="engine-start", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def use_one_thread() -> None:
    """torch in this thread computes alone, in others as before."""
    usual = torch.get_num_threads()
    if usual == 1:
        return
    torch.set_num_threads(1)
    # torch gives threads to come the number that was set last, wherever: so it is put back, elsewhere.
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()


CHUNK = 64 << 20  # bytes asked for at a time; those never written cost nothing
_LINE = 64


def map_pages(size: int) -> torch.Tensor:
    """uint8 [size], zeros; raises MemoryError. Private: shared memory would not get large pages."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system has no {size} bytes of memory") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class LargePages:
    """Lays weights side by side in large pages, or in plain pages where the system has no others."""

    def __init__(self, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._free = torch.empty(0, dtype=torch.uint8)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """At the start of a cache line, contiguous. Pages take memory when they are written."""
        size = math.prod(shape) * dtype.itemsize
        lines = -(-size // _LINE) * _LINE
        if lines > len(self._free):
            self._free = map_pages(max(lines, self._chunk))
        place, self._free = self._free[:size], self._free[lines:]
        return place.view(dtype).view(*shape)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values at the start of a cache line, contiguous."""
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor)
