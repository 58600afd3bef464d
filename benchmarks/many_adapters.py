"""`python -m benchmarks.many_adapters`: thousands of adapters on disk, few in memory, skewed traffic.

Requests pick an adapter by Zipf's law (exponent 1), 16 are in flight; the registry reads, checks and
loads what is not in memory and evicts what is not used. Compared with the same traffic over 5 adapters.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.progress import track

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, REQUESTS, prompts
from benchmarks.workload import export, random_adapter, start
from router.engine.base import Finished, Job
from router.engine.torch_engine import TorchEngine
from router.registry.registry import Registry, RegistryOptions
from router.types import AdapterRef, SamplingParams

FEW = 5
MADE = 8


def zipf(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` picks, the i-th name with probability proportional to 1 / i."""
    weights = [1 / (i + 1) for i in range(len(names))]
    return random.Random(seed).choices(names, weights, k=count)


class Traffic:
    """Requests over one registry and engine."""

    def __init__(self, registry: Registry, engine: TorchEngine) -> None:
        self.registry, self.engine = registry, engine
        self.warm: list[float] = []
        self.cold: list[float] = []

    async def run(self, names: Sequence[str], seed: int) -> float:
        """Generated tokens a second with 16 in flight."""
        tokens = prompts(self.engine.info.vocab_size, seed, len(names))
        room = asyncio.Semaphore(REQUESTS)
        begin = time.perf_counter()
        done = await asyncio.gather(*(self._one(n, t, room) for n, t in zip(names, tokens, strict=True)))
        return sum(done) / (time.perf_counter() - begin)

    async def _one(self, name: str, tokens: list[int], room: asyncio.Semaphore) -> int:
        async with room:
            begin = time.perf_counter()
            cold = self.registry.resolve(name).state.value != "ready"
            async with self.registry.lease(AdapterRef(name, "0")) as lease:
                params = SamplingParams(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
                stream = self.engine.submit(Job(name, tokens, params, lease.digest))
                first = 0.0
                async for event in stream:
                    first = first or time.perf_counter() - begin
                    if isinstance(event, Finished):
                        (self.cold if cold else self.warm).append(first)
                        return event.usage.completion_tokens
        raise RuntimeError("a generation ended without Finished")


async def measure(engine: TorchEngine, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Few and many, in turn."""
    options = RegistryOptions(host_memory_bytes=args.host_mb << 20, preload=False, state_dir=folder / "state")
    registry = Registry(engine, [folder / "adapters"], options)
    begin = time.perf_counter()
    await registry.start()
    found = time.perf_counter() - begin
    names = [info.ref.name for info in registry.list()]
    random.Random(1).shuffle(names)
    few, many = Traffic(registry, engine), Traffic(registry, engine)
    speeds: dict[str, list[float]] = {"few": [], "many": []}
    for run in range(args.rounds + 1):
        a = await few.run(zipf(names[:FEW], args.requests, run), run)
        b = await many.run(zipf(names, args.requests, 1000 + run), 1000 + run)
        if run:
            speeds["few"].append(a)
            speeds["many"].append(b)
    alone = [await cold_alone(registry, engine, name) for name in names[-20:]]
    await registry.close()
    ratio = median(b / a for a, b in zip(speeds["few"], speeds["many"], strict=True))
    return [
        {"what": f"{FEW} adapters, tokens/s", "value": median(speeds["few"])},
        {"what": f"{args.adapters} adapters, tokens/s", "value": median(speeds["many"])},
        {"what": "ratio (target 0.85)", "value": ratio},
        {"what": "share of cold requests", "value": len(many.cold) / (len(many.cold) + len(many.warm))},
        {"what": "first token under load, warm, ms (median)", "value": median(many.warm) * 1e3},
        {"what": "first token under load, cold, ms (median)", "value": median(many.cold) * 1e3},
        {
            "what": "cold load alone adds to first token, ms (median, target 150)",
            "value": median(alone) * 1e3,
        },
        {"what": "cold load alone, ms (largest of 20)", "value": max(alone) * 1e3},
        {"what": "finding all folders at start, s", "value": found},
    ]


async def cold_alone(registry: Registry, engine: TorchEngine, name: str) -> float:
    """Seconds that a cold load adds: first token cold minus first token warm, nothing else running."""
    times = []
    for seed in (1, 2):
        traffic = Traffic(registry, engine)
        await traffic.run([name], seed)
        times += traffic.cold + traffic.warm
    return times[0] - times[1]


def write_adapters(root: Path, count: int, rank: int, sites: dict[str, tuple[int, int]]) -> None:
    """`count` folders; a few sets of random weights, of which every copy has some numbers of its own."""
    made = [export(random_adapter(str(i), sites, rank), root, rank) for i in range(min(MADE, count))]
    config = (made[0] / "adapter_config.json").read_bytes()
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in made]
    for i in track(range(MADE, count), description="writing adapters", transient=True):
        folder = root / str(i)
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(config)
        # The file ends with weights: four bfloat16 numbers between 0.0078 and 0.03 that spell the number.
        own = b"".join(bytes([(i >> shift) & 15, 0x3C]) for shift in (0, 4, 8, 12))
        (folder / "adapter_model.safetensors").write_bytes(weights[i % MADE][: -len(own)] + own)


def main() -> None:
    """Write the adapters, measure, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=160, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--host-mb", type=int, default=2048)
    args = parser.parse_args()
    engine = start("smollm2-135m-instruct", "auto", native=True)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "adapters").mkdir()
        write_adapters(folder / "adapters", args.adapters, args.rank, dict(engine.info.sites))
        rows = asyncio.run(measure(engine, folder, args))
    engine.close()
    print(report.table(rows))
    workload = (
        f"{args.adapters} adapters of rank {args.rank} on disk, {args.host_mb} MiB of host memory for them, "
        f"{args.requests} requests a round by Zipf's law (exponent 1), {REQUESTS} in flight, "
        f"{PROMPT_TOKENS}±8 prompt and {NEW_TOKENS} new tokens; median of {args.rounds} rounds after one "
        "warm-up round."
    )
    print("written to", report.write("many-adapters", workload, rows, []))


if __name__ == "__main__":
    main()
