"""A forward pass at the size of a card, on tensors without data: there a read-back raises."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, LoraStep
from router.engine.runner import PackedBackbone
from router.engine.torch_ops import TorchOps
from tests.engine import tiny

META = torch.device("meta")
VOCABULARY, CONTEXT, BLOCKS = 128256, 8192, 2048


def backbone() -> PackedBackbone:
    """Two layers of Llama-3-8B."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
    )
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return PackedBackbone(*tiny.parts(model), TorchOps(), BLOCKS, CONTEXT)


def ints(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=META)


def plan(rows: list[tuple[int, int]]) -> AttentionPlan:
    """Rows of so many queries behind so many tokens."""
    bounds = list(accumulate((queries for queries, _ in rows), initial=0))
    contexts = [context for _, context in rows]
    places, width = ints([0] * bounds[-1]), -(-max(contexts) // BLOCK)
    table = ints([[0] * width for _ in rows])
    most = max(queries for queries, _ in rows)
    return AttentionPlan(ints(bounds), ints(contexts), table, places, places, most, bounds, contexts)


def lora(made: PackedBackbone, bounds: list[int], rank: int = 16) -> LoraStep:
    """An adapter for each range of tokens, at all site groups."""
    starts, groups = ints(bounds), len(bounds) - 1
    sites: list[LoraPlan | None] = []
    for group in made.groups:
        shapes = (len(group.names) * rank, group.in_features), (group.out_offsets[-1], rank)
        pair = tuple(torch.empty(shape, dtype=torch.bfloat16, device=META) for shape in shapes)
        table = torch.zeros(groups, 3, dtype=torch.int64, device=META)
        sites.append(LoraPlan(starts, table, [(pair[0], pair[1])] * groups, bounds))
    return LoraStep(starts, torch.zeros(len(sites), groups, 3, dtype=torch.int64, device=META), sites)


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize(
    "rows", [[(1, 1024)] * 32, [(512, 512), (1, 90)], [(7, 300), (1, 20), (1, 5)]], ids=len
)
def test_no_step_reads_back(rows: list[tuple[int, int]], adapters: bool) -> None:
    made, attention = backbone(), plan(rows)
    count = attention.bounds[-1]
    tokens = torch.zeros(count, dtype=torch.int64, device=META)
    last = torch.zeros(len(rows), dtype=torch.int64, device=META)
    step = lora(made, [1, 2, count]) if adapters else None
    logits = made.forward(tokens, attention, step, last)
    assert (logits.shape, logits.device) == ((len(rows), VOCABULARY), META)


def test_the_cache_takes_what_the_shape_says() -> None:
    made = backbone()
    assert made.cache_bytes() == BLOCKS * BLOCK * 2 * (2 * 8 * 128) * 2  # blocks, layers, k and v, bytes
