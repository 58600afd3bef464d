"""Operations of a step, native against torch, at the shapes of the default base: `python -m benchmarks.ops`.

Microseconds for one layer, median over many runs. "cold" goes through the weights of all layers in turn, as a
step does, so that each is read from memory; "warm" repeats one layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch

from router.engine.native import load_ops
from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, Ops, SiteGroup
from router.engine.torch_ops import TorchOps

LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, INNER = 30, 576, 9, 3, 64, 1536
SITES = (
    (HIDDEN, (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)),
    (HEADS * DIM, (HIDDEN,)),
    (HIDDEN, (INNER, INNER)),
    (INNER, (HIDDEN,)),
)
Run = Callable[[Ops], None]
Case = tuple[str, int, Callable[[Ops], Run]]  # name, layers in one run, what to prepare


def lora_case(sizes: list[int], rank: int, dtype: torch.dtype, layers: int) -> Callable[[Ops], Run]:
    """All site groups of `layers` layers; sizes: tokens of each adapter."""
    bounds = [0, *accumulate(sizes)]

    def site(
        ops: Ops, width: int, outs: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, LoraPlan, SiteGroup]:
        offsets = (0, *accumulate(outs))
        weights = [
            (
                ops.pack_a(torch.randn(len(outs) * rank, width).to(dtype)),
                ops.pack_b(torch.randn(offsets[-1], rank).to(dtype)),
            )
            for _ in sizes
        ]
        table = torch.tensor([[a.data_ptr(), b.data_ptr(), rank] for a, b in weights])
        plan = LoraPlan(torch.tensor(bounds, dtype=torch.int32), table, list(weights), bounds)
        y, x = torch.zeros(bounds[-1], offsets[-1], dtype=dtype), torch.randn(bounds[-1], width).to(dtype)
        return y, x, plan, SiteGroup(("",) * len(outs), width, offsets)

    def prepare(ops: Ops) -> Run:
        work = [site(ops, width, outs) for _ in range(layers) for width, outs in SITES]

        def run(ops: Ops) -> None:
            for y, x, plan, group in work:
                ops.lora(y, x, plan, group)

        return run

    return prepare


def linear_case(tokens: int, dtype: torch.dtype) -> Callable[[Ops], Run]:
    """The base's own linear layers, all of them in turn."""
    inputs = {width: torch.randn(tokens, width).to(dtype) for width, _ in SITES}

    def prepare(ops: Ops) -> Run:
        layers = [
            (width, ops.pack_linear(torch.randn(sum(outs), width).to(dtype), None))
            for _ in range(LAYERS)
            for width, outs in SITES
        ]

        def run(_: Ops) -> None:
            for width, linear in layers:
                linear(inputs[width])

        return run

    return prepare


def attention_plan(rows: int, queries: int, context: int) -> AttentionPlan:
    """Rows of one length, their blocks scattered over the cache."""
    blocks = -(-context // BLOCK)
    table = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    positions = torch.arange(context - queries, context)
    slots = table[:, positions // BLOCK] * BLOCK + positions % BLOCK
    return AttentionPlan(
        cu_q=torch.arange(0, rows * queries + 1, queries, dtype=torch.int32),
        context=torch.full((rows,), context, dtype=torch.int32),
        block_table=table,
        positions=positions.repeat(rows).int(),
        slots=slots.flatten().int(),
        most_queries=queries,
        bounds=list(range(0, rows * queries + 1, queries)),
        contexts=[context] * rows,
    )


def attention_case(
    rows: int, queries: int, context: int, dtype: torch.dtype, rope: bool = False
) -> Callable[[Ops], Run]:
    """Attention, or with `rope` the rotation and the cache write before it."""
    plan = attention_plan(rows, queries, context)
    cache = torch.randn(2, plan.block_table.numel(), KV_HEADS, BLOCK, DIM).to(dtype)
    qkv = torch.randn(rows * queries, (HEADS + 2 * KV_HEADS) * DIM).to(dtype)
    cos, sin = torch.randn(2, context, DIM)

    def run(ops: Ops) -> None:
        if rope:
            ops.rope_write(qkv, cos, sin, cache[0], cache[1], plan, HEADS)
        else:
            ops.attention(qkv, cache[0], cache[1], plan, HEADS, DIM**-0.5)

    return lambda ops: run


def elementwise_cases(tokens: int, dtype: torch.dtype) -> list[Case]:
    """Norms and the gated unit."""
    x, residual = torch.randn(2, tokens, HIDDEN).to(dtype)
    weight, gate_up = torch.randn(HIDDEN).to(dtype), torch.randn(tokens, 2 * INNER).to(dtype)
    return [
        (f"rms_norm, {tokens} tokens", 1, lambda _: lambda ops: ops.rms_norm(x, weight, 1e-5)),
        (
            f"add_rms_norm, {tokens} tokens",
            1,
            lambda _: lambda ops: ops.add_rms_norm(residual.zero_(), x, weight, 1e-5),
        ),
        (f"silu_mul, {tokens} tokens", 1, lambda _: lambda ops: ops.silu_mul(gate_up)),
    ]


def cases(args: argparse.Namespace) -> list[Case]:
    """Decode with `rows` rows over `adapters` adapters, and prefill of as many prompts."""
    dtype, rows, prompt = getattr(torch, args.dtype), args.rows, args.prompt
    decode = [rows // args.adapters] * args.adapters
    prefill = [prompt * n for n in decode]
    return [
        *((f"linear, {n} tokens", LAYERS, linear_case(n, dtype)) for n in (1, rows, 512)),
        (f"lora decode warm, {decode} rows", 1, lora_case(decode, args.rank, dtype, 1)),
        (f"lora decode cold, {decode} rows", LAYERS, lora_case(decode, args.rank, dtype, LAYERS)),
        (f"lora decode cold, one adapter, {rows} rows", LAYERS, lora_case([rows], args.rank, dtype, LAYERS)),
        (f"lora prefill, {rows} prompts of {prompt}", LAYERS, lora_case(prefill, args.rank, dtype, LAYERS)),
        *(
            (f"attention decode, {rows} rows, {context} tokens", 1, attention_case(rows, 1, context, dtype))
            for context in (128, 500, 2000)
        ),
        (f"attention prefill, {rows} prompts of {prompt}", 1, attention_case(rows, prompt, prompt, dtype)),
        ("attention prefill, 512 of 2048 tokens", 1, attention_case(1, 512, 2048, dtype)),
        (f"rope_write, {rows} tokens", 1, attention_case(rows, 1, 128, dtype, rope=True)),
        *elementwise_cases(rows, dtype),
        *elementwise_cases(rows * prompt, dtype),
    ]


def microseconds(run: Run, ops: Ops, layers: int, seconds: float) -> float:
    """Median time of a layer, over runs that take `seconds` together."""
    run(ops)
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        run(ops)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / layers * 1e6


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=16, help="sequences that decode together")
    parser.add_argument("--adapters", type=int, default=8, help="different adapters among them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=90, help="tokens of a prompt")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each cell")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    native, status = load_ops(True, "cpu", getattr(torch, args.dtype))
    print(f"{status}; torch {torch.__version__}, {args.dtype}, {args.threads} threads; us for one layer")
    print(f"{'':<52}{'native':>10}{'torch':>10}{'ratio':>8}")
    with torch.inference_mode():
        for name, layers, prepare in cases(args):
            fast, slow = (
                microseconds(prepare(ops), ops, layers, args.seconds) for ops in (native, TorchOps())
            )
            print(f"{name:<52}{fast:>10.1f}{slow:>10.1f}{slow / fast:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
