"""`python -m benchmarks.memory`: resident memory after load, over load/unload cycles and over requests.

A control that leaks on purpose runs first, so that a detector that sees nothing is noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from rich.progress import track

from benchmarks import report
from benchmarks.prompts import prompts
from benchmarks.workload import random_adapter, start
from router.engine.base import Job
from router.engine.torch_engine import TorchEngine
from router.types import SamplingParams

MIB = 2**20


def resident() -> float:
    """Resident set of this process in MiB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss / MIB)


async def cycles(engine: TorchEngine, count: int) -> list[float]:
    """Load, use and unload an adapter, each time a new one; memory after every tenth."""
    samples = []
    tokens = prompts(engine.info.vocab_size)[0][:20]
    for i in track(range(count), description="load/unload", transient=True):
        artifact = random_adapter(str(i % 7), dict(engine.info.sites))
        fresh = type(artifact)(artifact.name, str(i), f"cycle-{i}", artifact.sites)
        await engine.load(fresh)
        await _answer(engine, tokens, fresh.digest, 2)
        await engine.unload(fresh.digest)
        if i % 10 == 9:
            samples.append(resident())
    return samples


async def requests(engine: TorchEngine, count: int) -> list[float]:
    """Requests, 16 at a time, all different; memory after every fifth batch."""
    samples = []
    for batch in track(range(count // 16), description="requests", transient=True):
        work = prompts(engine.info.vocab_size, seed=batch)
        await asyncio.gather(*(_answer(engine, tokens, None, 4) for tokens in work))
        if batch % 5 == 4:
            samples.append(resident())
    return samples


async def leak(_: TorchEngine, count: int) -> list[float]:
    """The control: keeps a megabyte each time."""
    kept, samples = [], []
    for i in range(count):
        kept.append(bytearray(b"x" * MIB))
        if i % 10 == 9:
            samples.append(resident())
    return samples


async def _answer(engine: TorchEngine, tokens: list[int], adapter: str | None, new: int) -> None:
    async for _ in engine.submit(Job("m", tokens, SamplingParams(max_tokens=new, min_tokens=new), adapter)):
        pass


def growth(samples: list[float]) -> float:
    """MiB from the median of the second fifth to the median of the last fifth: warm-up is left out."""
    fifth = max(1, len(samples) // 5)
    middle = sorted(samples[fifth : 2 * fifth])[fifth // 2]
    return sorted(samples[-fifth:])[fifth // 2] - middle


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    engine = start("smollm2-135m-instruct", "auto", native=True)
    weights = engine.info.size_bytes / MIB
    loaded = resident()
    parts: dict[str, tuple[Callable[[TorchEngine, int], Awaitable[list[float]]], int]] = {
        "control that leaks 1 MiB a cycle": (leak, 100),
        # Requests first: they touch every block of the cache once, which is growth that ends.
        "requests": (requests, args.requests),
        "load, use, unload": (cycles, args.cycles),
    }
    rows: list[dict[str, Any]] = [
        {"what": "after load", "count": 1, "resident MiB": loaded, "growth MiB": 0.0}
    ]
    with asyncio.Runner() as runner:
        for name, (run, count) in parts.items():
            samples = runner.run(run(engine, count))  # type: ignore[arg-type]
            rows.append(
                {"what": name, "count": count, "resident MiB": samples[-1], "growth MiB": growth(samples)}
            )
    engine.close()
    limit = 2.2 * weights + 700
    notes = [f"base weights {weights:.0f} MiB in {engine.info.dtype}; limit after load {limit:.0f} MiB"]
    print(report.table(rows))
    print("written to", report.write("memory", "One engine in this process, default settings.", rows, notes))


if __name__ == "__main__":
    main()
