"""This engine as a contestant that tells decoding apart from reading the prompt: a line in, a line out.

In: {"prompts": [...], "new": N, "adapters": N}; out: {"seconds", "tokens", "step"}: of the whole round, and
seconds from one token of a request to its next.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch

from benchmarks.answering import About, Round, about, answer
from benchmarks.workload import jobs, random_adapter, start
from router.engine.base import BaseInfo, Finished, Job
from router.engine.torch_engine import TorchEngine
from router.types import Usage

MIB = 2**20


def prepare(args: argparse.Namespace) -> tuple[About, Round]:
    """The engine with its adapters in memory."""
    runner = asyncio.Runner()
    engine = start(args.model, args.dtype, native=not args.torch_operations, quantize=args.quantize)
    info = engine.info
    digests: list[str] = []
    for number in range(args.adapters):
        artifact = random_adapter(str(number), info.sites)
        runner.run(engine.load(artifact))
        digests.append(artifact.digest)

    def run(work: dict[str, Any]) -> dict[str, Any]:
        chosen: list[str | None] = [*digests[: work["adapters"]]] or [None]
        began = time.perf_counter()
        used = runner.run(_all(engine, jobs(work["prompts"], chosen, work["new"])))
        seconds = time.perf_counter() - began
        steps = [(one.total_time - one.time_to_first_token) / (one.completion_tokens - 1) for one in used]
        return {
            "seconds": seconds,
            "tokens": sum(one.completion_tokens for one in used),
            "step": fmean(steps),
        }

    more = {
        "precision": info.precision,
        "kernels": info.kernels,
        "vocabulary": info.vocab_size,
        "linear": linear_bytes(info) / MIB,
    }
    return about(torch.get_num_threads(), "lora-router", "torch", **more), run


def linear_bytes(info: BaseInfo) -> int:
    """Bytes that a step reads of the linear layers' weights, the head's among them, and their scales."""
    hidden = next(width for name, (_, width) in info.sites.items() if name.endswith("q_proj"))
    shapes = [*info.sites.values(), (info.vocab_size, hidden)]
    if info.weights:
        return sum(out * width + 4 * out for out, width in shapes)
    size: int = getattr(torch, info.dtype).itemsize
    return sum(out * width * size for out, width in shapes)


async def _all(engine: TorchEngine, work: Sequence[Job]) -> list[Usage]:
    return await asyncio.gather(*(_usage(engine, job) for job in work))


async def _usage(engine: TorchEngine, job: Job) -> Usage:
    async for event in engine.submit(job):
        if isinstance(event, Finished):
            return event.usage
    raise RuntimeError("a generation ended without Finished")


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--adapters", type=int, default=0, help="in memory before the first round")
    parser.add_argument("--torch-operations", action="store_true", help="as without a C++ compiler")
    answer(partial(prepare, parser.parse_args()))


if __name__ == "__main__":
    main()
