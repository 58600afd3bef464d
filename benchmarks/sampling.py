"""Choosing a step's tokens, native against torch, for the default base: `python -m benchmarks.sampling`.

Milliseconds a step for all rows together, median over many steps, from `SamplingState` to the token. Rows are
"likely" (a few tokens have nearly all of the mass, as a model's mostly do) or "flat" (spread over thousands).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from router.engine.native import load_ops
from router.engine.ops import Ops
from router.engine.sampling import Sampler, SamplingState
from router.engine.torch_ops import TorchOps
from router.types import SamplingParams

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, min_tokens": {"min_tokens": 10**9},
    "temperature": {"temperature": 0.8},
    "temperature, top_p": {"temperature": 0.8, "top_p": 0.95},
    "temperature, top_k": {"temperature": 0.8, "top_k": 50},
    "temperature, top_k, top_p, min_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.2},
    "logprobs 5": {"logprobs": 5},
    "constrained": {},
}


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, vocab] of one kind."""
    torch.manual_seed(0)
    flat = torch.randn(rows, vocab) * 2
    if kind == "flat":
        return (1.5 * flat).to(dtype)
    favoured = torch.rand(rows, vocab).argsort(-1)[:, :400]
    lead = 18 - 2 * torch.arange(1, 401).log()
    return flat.scatter_add_(1, favoured, lead.expand(rows, -1)).to(dtype)


def states_of(name: str, rows: int, vocab: int) -> list[SamplingState]:
    """As many rows with the case's settings, with prompts of 100 tokens."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, vocab, (rows, 100))
    allowed = None
    if name == "constrained":  # a hundredth of the tokens may come next
        bits = rng.random(-(-vocab // 32) * 32) < 0.01
        allowed = np.packbits(bits, bitorder="little").view(np.int32)
    params = SamplingParams(**{"seed": 1, **CASES[name]})
    return [SamplingState(params, prompt.tolist(), [0, 2], allowed) for prompt in prompts]


def milliseconds(step: Callable[[], object], seconds: float) -> float:
    """Median time of a step, over steps that take `seconds` together."""
    step()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def sampling_step(ops: Ops, logits: torch.Tensor, states: Sequence[SamplingState]) -> Callable[[], object]:
    """One step's sampling."""
    sampler = Sampler(logits.shape[1], str, ops.choose)
    return lambda: sampler.sample(logits, states)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each cell")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    native, status = load_ops(True, "cpu", dtype)
    print(f"{status}; torch {torch.__version__}, {args.dtype}, {args.rows} rows of {args.vocab}; ms a step")
    print(f"{'':<34}{'native':>16}{'torch':>16}")
    print(f"{'':<34}{'likely':>8}{'flat':>8}{'likely':>8}{'flat':>8}")
    kinds = [logits_of(kind, args.rows, args.vocab, dtype) for kind in ("likely", "flat")]
    cells: dict[str, list[float]] = {name: [] for name in CASES}
    with torch.inference_mode():
        for ops in (native, TorchOps()):  # torch's threads go on looking for work: they come last
            for name, logits in product(CASES, kinds):
                states = states_of(name, args.rows, args.vocab)
                cells[name].append(milliseconds(sampling_step(ops, logits, states), args.seconds))
    for name, found in cells.items():
        print(f"{name:<34}" + "".join(f"{cell:>8.2f}" for cell in found))


if __name__ == "__main__":
    main()
