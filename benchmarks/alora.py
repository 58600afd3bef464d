"""Activated LoRA: `python -m benchmarks.alora`.

How long a request of 1,000 tokens takes to its first token, routed and answered. Routed: the base reads it. A
plain LoRA then reads it again from its beginning; an activated one goes on from what the base read. Beside
that each part alone.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks import report
from benchmarks.answering import RANK
from benchmarks.contestants import told
from benchmarks.long_prompts import long
from benchmarks.workload import random_adapter, start
from router.engine.base import AdapterArtifact, Finished, Job
from router.engine.ops import BLOCK
from router.engine.prompt import PromptEncoder
from router.engine.torch_engine import TorchEngine
from router.models import resolve_model
from router.types import SamplingParams

INVOCATION = "<|im_start|>assistant\n"  # what the default base's template writes before an answer
TARGET = 0.4  # of what a plain LoRA takes

BASE, PLAIN, LATE, AFTER = "base", "LoRA", "activated", "activated, after the base"
PARTS = (BASE, PLAIN, LATE, AFTER)
WAYS = {  # what a request waits for, one after the other
    "the base reads all, then the adapter": ((BASE, PLAIN), (BASE, AFTER)),
    "the base has read it before": ((PLAIN,), (AFTER,)),
}
Seconds = dict[str, list[float]]


def main() -> None:
    """Parse arguments, run, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default 9)")
    parser.add_argument("--tokens", type=int, default=1000, help="of a prompt (default 1000)")
    parser.add_argument("--rank", type=int, default=RANK, help=f"of the adapters (default {RANK})")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dry", action="store_true", help="print, and write no results")
    args = parser.parse_args()
    engine = start(args.model, "auto", native=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(args.model))
        invocation = PromptEncoder(tokenizer).encode_template_text(INVOCATION)
        seconds = asyncio.run(measure(engine, tuple(invocation), args.tokens, args.rank, args.rounds))
        about = f"{engine.info.kernels}, {engine.info.precision}"
    finally:
        engine.close()
    rows, notes = compared(seconds), parts_alone(seconds)
    print(report.table(rows), *notes, sep="\n")
    workload = (
        f"one request at a time of {args.tokens} random tokens that end with {INVOCATION!r}, none seen "
        f"before; one new token; adapters of rank {args.rank} on all linear layers; {about}; medians of "
        f"{args.rounds} rounds."
    )
    if not args.dry:
        print("written to", report.write("alora", workload, rows, notes))


async def measure(
    engine: TorchEngine, invocation: tuple[int, ...], length: int, rank: int, rounds: int
) -> Seconds:
    """Seconds of each part, in turn in every round; the first is warm-up."""
    plain = random_adapter("plain", engine.info.sites, rank)
    late = replace(plain, name="late", digest="digest-late", invocation_tokens=invocation)
    for artifact in (plain, late):
        await engine.load(artifact)
    seconds: Seconds = {part: [] for part in PARTS}
    with told("rounds", rounds + 1) as step:
        for run in range(rounds + 1):
            step(f"round {run} of {rounds}")
            for part, took in (await one_round(engine, plain, late, length, run)).items():
                seconds[part] += [took] * bool(run)
    return seconds


async def one_round(
    engine: TorchEngine, plain: AdapterArtifact, late: AdapterArtifact, length: int, run: int
) -> dict[str, float]:
    """Seconds of each part, on prompts of its own; what was read before is only found where it should be."""
    calls = late.invocation_tokens
    texts = [
        [*long(engine.info.vocab_size, 10 * run + i, length - len(calls)), *calls] for i in range(len(PARTS))
    ]
    read = (length - len(calls)) // BLOCK * BLOCK
    answer: list[tuple[str, Sequence[int], str | None, int]] = [
        (BASE, texts[0], None, 0),
        (AFTER, texts[0], late.digest, read),
        (PLAIN, texts[1], plain.digest, 0),
        (LATE, texts[2], late.digest, 0),
    ]
    found = {}
    for part, tokens, adapter, known in answer:
        found[part] = await timed(partial(first_token, engine, tokens, adapter, known))
    return found


async def first_token(engine: TorchEngine, tokens: Sequence[int], adapter: str | None, known: int) -> None:
    """Wait for the first token; raises if another number than `known` came out of the prefix cache."""
    job = Job("r", tokens, SamplingParams(max_tokens=1, min_tokens=1), adapter)
    async for event in engine.submit(job):
        if isinstance(event, Finished) and event.usage.cached_tokens != known:
            raise RuntimeError(f"{event.usage.cached_tokens} tokens were cached, {known} were expected")


async def timed(act: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


def compared(seconds: Seconds) -> list[dict[str, Any]]:
    """A row for each way to the first token, medians over rounds."""
    rows = []
    for way, (plain, late) in WAYS.items():
        sums = [np.sum([seconds[part] for part in parts], axis=0).tolist() for parts in (plain, late)]
        ratio = median(a / b for a, b in zip(sums[1], sums[0], strict=True))
        rows.append(
            {
                "first token": way,
                "LoRA, ms": 1e3 * median(sums[0]),
                "activated, ms": 1e3 * median(sums[1]),
                "activated / LoRA": ratio,
                f"target {TARGET}": "reached" if ratio <= TARGET else "missed",
            }
        )
    return rows


def parts_alone(seconds: Seconds) -> list[str]:
    """Each part, and what bounds the first row."""
    lines = [f"{part}: {1e3 * median(seconds[part]):.4g} ms" for part in PARTS]
    costs = median(p / b for p, b in zip(seconds[PLAIN], seconds[BASE], strict=True))
    bound = 1 / (1 + costs)
    return [
        *lines,
        f"a LoRA reads a prompt in {costs:.3g} times the base's time: who has it read once instead of twice "
        f"takes {bound:.3g} of the time at least",
    ]


if __name__ == "__main__":
    main()
