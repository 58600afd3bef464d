"""This engine as a contestant of a benchmark: a line in, a round, a line out.

In: {"prompts": [...], "new": N, "adapters": N}; out: {"seconds", "tokens", "step", "gap"}, where step has
milliseconds of a step in which every row has one token, by what they went into, and gap has the mean seconds
from one token of a request to its next. With "alone": true the first prompt has the engine to itself; out:
{"step": seconds from token to token, "memory": seconds to read what a step reads}.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.answering import About, Round, about, answer
from benchmarks.workload import export, jobs, random_adapter, start, usages
from router.engine.base import BaseInfo, Delta, Job
from router.engine.native.ops import NativeStack
from router.engine.torch_engine import TorchEngine

OUTSIDE = "planning, sampling, delivering"


def prepare(args: argparse.Namespace) -> tuple[About, Round]:
    """The engine with its adapters in memory."""
    runner = asyncio.Runner()
    engine = start(args.model, args.dtype, native=not args.torch_operations, quantize=args.quantize)
    info = engine.info
    digests: list[str] = []
    sizes: dict[str, int] = {}
    for number in range(args.adapters):
        artifact = random_adapter(str(number), info.sites)
        sizes[artifact.digest] = runner.run(engine.load(artifact))
        digests.append(artifact.digest)
        if args.export:
            export(artifact, args.export)

    stack = engine.stack

    def run(work: dict[str, Any]) -> dict[str, Any]:
        chosen: list[str | None] = [*digests[: work["adapters"]]] or [None]
        if work.get("alone"):
            return alone(jobs(work["prompts"][:1], chosen, work["new"])[0])
        steps_of(stack)
        seconds, used = runner.run(usages(engine, jobs(work["prompts"], chosen, work["new"])))
        gaps = [
            (one.total_time - one.time_to_first_token) / max(1, one.completion_tokens - 1) for one in used
        ]
        tokens = sum(one.completion_tokens for one in used)
        return {"seconds": seconds, "tokens": tokens, "step": steps_of(stack, seconds), "gap": fmean(gaps)}

    def alone(job: Job) -> dict[str, Any]:
        memory = read_seconds(stack)
        step = runner.run(seconds_a_token(engine, job))
        memory = median([*memory, *read_seconds(stack)])
        weights = stack.read_weights()
        adapter = sizes[job.adapter] if job.adapter is not None else 0
        return {"step": step, "memory": memory * (weights + adapter) / weights}

    more = {
        "dtype": info.dtype,
        "precision": info.precision,
        "kernels": info.kernels,
        "vocabulary": info.vocab_size,
        "linear": linear_bytes(info) / 2**20,
    }
    return about(torch.get_num_threads(), "lora-router", "torch", **more), run


def linear_bytes(info: BaseInfo) -> int:
    """Bytes that a step reads of the linear layers' weights, the head's among them, and their scales."""
    hidden = next(width for name, (_, width) in info.sites.items() if name.endswith("q_proj"))
    shapes = [*info.sites.values(), (info.vocab_size, hidden)]
    if info.weights == "int4":
        return sum(out * width * 5 // 8 for out, width in shapes)
    if info.weights:
        return sum(out * width + 4 * out for out, width in shapes)
    size: int = getattr(torch, info.dtype).itemsize
    return sum(out * width * size for out, width in shapes)


def steps_of(stack: Any, seconds: float | None = None) -> dict[str, float]:
    """Milliseconds of a decode step by part since this was last asked, in a run that took so long."""
    if not isinstance(stack, NativeStack):
        return {}
    (parts, steps), (others, more) = stack.spent(), stack.spent(decode=False)
    if seconds is None or not steps:
        return {}
    outside = (seconds - sum(parts.values()) - sum(others.values())) / (steps + more)
    shown = {name: spent / steps for name, spent in parts.items()} | {OUTSIDE: outside}
    return {name: 1e3 * value for name, value in shown.items()}


def read_seconds(stack: NativeStack, times: int = 9) -> list[float]:
    """How long it takes to read all weights."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        stack.read_weights()
        found.append(time.perf_counter() - begin)
    return found


async def seconds_a_token(engine: TorchEngine, job: Job) -> float:
    """Seconds from one token of an answer to the next."""
    times = [time.perf_counter() async for event in engine.submit(job) if isinstance(event, Delta)]
    return (times[-1] - times[0]) / (len(times) - 1)


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--adapters", type=int, default=0, help="in memory before the first round")
    parser.add_argument("--torch-operations", action="store_true", help="as without a C++ compiler")
    parser.add_argument("--export", type=Path, help="write the adapters there, for others to read")
    answer(partial(prepare, parser.parse_args()))


if __name__ == "__main__":
    main()
