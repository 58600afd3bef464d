"""`python -m benchmarks.quantized_perplexity`: what weights in few bits cost in perplexity on real text.

The text: passages and descriptions of software of the validation rows of two recipes, which no base here was
trained on by this project. The default base reads them in the engine that serves, in pieces of 256 tokens.

The default base was made of a file in 4 bits (Q4_1), so 4 bits lose nothing of it. Therefore the base is read
with its channels in another order, too: it computes the same, but the numbers of a group were not in one
group of that file.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks import report
from router.config import Settings
from router.engine.base import PoolingRequest
from router.engine.loader import LoadedModel, load_model
from router.engine.torch_engine import TorchEngine
from router.models import resolve_model

ROWS = Path(__file__).parent.parent / "recipes" / "data"
PIECE = 256  # tokens read at once
AT_ONCE = 8
WAYS = ("none", "int8", "int4")
AS_IT_IS, PERMUTED = "as it is", "channels in another order"


def main() -> None:
    """Read the text in every precision, compare, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pieces", type=int, default=96, help=f"of {PIECE} tokens (default 96: all)")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    table = []
    for order in (AS_IT_IS, PERMUTED):
        own: list[float] = []
        for way in WAYS:
            with closing(started(args.model, args.dtype, way, order)) as engine:
                texts = pieces(engine, args.pieces)
                losses = asyncio.run(read(engine, texts))
            own = own or losses
            table.append(row(order, way, losses, own))
            print(table[-1], flush=True)
    workload = (
        f"Passages of `qa.valid` and descriptions of `summarization.valid`, {len(own)} tokens in pieces of "
        f"{PIECE}; each token but the first of a piece is predicted. Ratios to the base as it is, with "
        "their standard error over tokens."
    )
    command = "python -m benchmarks.quantized_perplexity"
    print("written to", report.write("quantized_perplexity", workload, table, [], command=command))


def row(order: str, way: str, losses: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """A line of the table; `losses` and `own`, the base's, in nats a token."""
    lost = [loss - base for loss, base in zip(losses, own, strict=True)]
    mean = fmean(lost)
    return {
        "base": order,
        "weights": "as they are" if way == "none" else way,
        "perplexity": math.exp(fmean(losses)),
        "ratio": math.exp(mean),
        "standard error": math.exp(mean) * (stdev(lost) / math.sqrt(len(lost)) if any(lost) else 0.0),
    }


def started(model: str, dtype: str, way: str, order: str) -> TorchEngine:
    """A running engine."""
    loaded = load_model(resolve_model(model), model)
    if order == PERMUTED:
        permute(loaded.model)
    values: dict[str, Any] = {"model": model, "dtype": dtype, "quantize": way, "device": "cpu"}
    engine = TorchEngine(Settings(**values), LoadedModel(loaded.model, loaded.tokenizer, model))
    engine.start()
    return engine


def pieces(engine: TorchEngine, most: int) -> list[list[int]]:
    """The text in tokens."""
    texts = list(dict.fromkeys(_texts()))
    random.Random(1).shuffle(texts)
    tokens: list[int] = engine._tokenizer("\n\n".join(texts))["input_ids"]
    return [tokens[at : at + PIECE] for at in range(0, len(tokens) - PIECE, PIECE)][:most]


def _texts() -> Iterator[str]:
    for row in _rows("qa"):
        yield row["prompt"].split("Passage: ", 1)[1].split("\n\nQuestion")[0]
    for row in _rows("summarization"):
        yield row["x"]


def _rows(name: str) -> list[dict[str, str]]:
    packed = (ROWS / f"{name}.valid.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


async def read(engine: TorchEngine, texts: Sequence[Sequence[int]]) -> list[float]:
    """The negative log-probability of each token."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(tokens: Sequence[int]) -> list[float]:
        async with places:
            found = await engine.read(PoolingRequest(tokens[1:], tokens[:1]))
            return [-float(value) for value in found]

    return [loss for losses in await asyncio.gather(*map(one, texts)) for loss in losses]


@torch.no_grad()
def permute(model: Any) -> None:
    """Other places for hidden channels, for those of each gated unit and, in each head, for those of v."""
    rng = torch.Generator().manual_seed(0)
    config, inner = model.config, model.model
    hidden = torch.randperm(config.hidden_size, generator=rng)
    inner.embed_tokens.weight.copy_(inner.embed_tokens.weight[:, hidden].clone())
    inner.norm.weight.copy_(inner.norm.weight[hidden].clone())
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        size, heads = attention.head_dim, config.num_key_value_heads
        shared = config.num_attention_heads // heads
        of_v = [n * size + torch.randperm(size, generator=rng) for n in range(heads)]
        of_o = [of_v[n // shared] + (n - n // shared) * size for n in range(heads * shared)]
        unit = torch.randperm(config.intermediate_size, generator=rng)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.copy_(norm.weight[hidden].clone())
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[:, hidden].clone())
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(linear.weight[hidden].clone())
        attention.v_proj.weight.copy_(attention.v_proj.weight[torch.cat(of_v)].clone())
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, torch.cat(of_o)].clone())
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[unit].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, unit].clone())


if __name__ == "__main__":
    main()
