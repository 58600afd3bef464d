"""This engine as a contestant of a benchmark: a line in, a round, a line out.

In: {"prompts": [...], "new": N, "adapters": N}; out: {"seconds": ..., "tokens": ...}.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.answering import About, Round, about, answer
from benchmarks.workload import export, jobs, random_adapter, run_jobs, start


def prepare(args: argparse.Namespace) -> tuple[About, Round]:
    """The engine with its adapters in memory."""
    runner = asyncio.Runner()
    engine = start(args.model, args.dtype, native=not args.torch_operations)
    info = engine.info
    digests: list[str] = []
    for number in range(args.adapters):
        artifact = random_adapter(str(number), info.sites)
        runner.run(engine.load(artifact))
        digests.append(artifact.digest)
        if args.export:
            export(artifact, args.export)

    def run(work: dict[str, Any]) -> dict[str, Any]:
        chosen: list[str | None] = [*digests[: work["adapters"]]] or [None]
        seconds, tokens = runner.run(run_jobs(engine, jobs(work["prompts"], chosen, work["new"])))
        return {"seconds": seconds, "tokens": tokens}

    more = {"dtype": info.dtype, "kernels": info.kernels, "vocabulary": info.vocab_size}
    return about(torch.get_num_threads(), "lora-router", "torch", **more), run


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--adapters", type=int, default=0, help="in memory before the first round")
    parser.add_argument("--torch-operations", action="store_true", help="as without a C++ compiler")
    parser.add_argument("--export", type=Path, help="write the adapters there, for others to read")
    answer(partial(prepare, parser.parse_args()))


if __name__ == "__main__":
    main()
