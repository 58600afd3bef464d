"""Rotary positions are exact, however the model is served and however long the context is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from router.engine.model.generic import GenericBackbone
from router.engine.model.loader import load_model, place
from router.engine.model.packed import PackedBackbone, _rotary_table
from router.engine.ops import AttentionPlan
from router.engine.torch_ops import TorchOps
from router.errors import ConfigError
from tests.engine import tiny

OPS = TorchOps()
CPU = torch.device("cpu")
LOW = [torch.bfloat16, torch.float16]
SHAPE: dict[str, Any] = tiny.SHAPE | {"num_hidden_layers": 1, "max_position_embeddings": 131072}


def placed(config: Any, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    place(model, CPU, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    return model


@pytest.mark.parametrize(
    ("theta", "dtype"),
    [(1e4, torch.float32), (1e4, torch.float16), (1e4, torch.bfloat16), (1e6, torch.bfloat16)],
    ids=str,
)
def test_the_table_is_that_of_float64(theta: float, dtype: torch.dtype) -> None:
    context, dim = 65536, 64
    rope = {"rope_type": "default", "rope_theta": theta}
    model = placed(LlamaConfig(**SHAPE, head_dim=dim, rope_parameters=rope), dtype)
    cos, sin = _rotary_table(model.model.rotary_emb, context, CPU)
    assert cos.shape == sin.shape == (context, dim)
    assert cos.dtype == sin.dtype == torch.float32
    powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = (torch.arange(context, dtype=torch.float64)[:, None] / theta**powers).repeat(1, 2)
    for ours, exact in ((cos, angles.cos()), (sin, angles.sin())):
        # A frequency and its product with the position are each rounded to float32 once.
        off = (ours.double() - exact).abs()
        assert bool((off <= 2 * angles * 2**-23 + 2**-22).all())
        assert off[:8192].max() < 2e-3


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_are_those_of_the_model_in_float32(rope: dict[str, Any], dtype: torch.dtype) -> None:
    config = Qwen3Config(**SHAPE, head_dim=32, rope_parameters=rope)
    low, full = placed(config, dtype), placed(config, torch.float32)
    low_table, full_table = (_rotary_table(m.model.rotary_emb, 20000, CPU) for m in (low, full))
    for ours, exact in zip(low_table, full_table, strict=True):
        assert torch.equal(ours, exact)
    assert low_table[0][0].max() == pytest.approx(low.model.rotary_emb.attention_scaling)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_frequencies_of_a_checkpoint_in_few_bits_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.model("llama").to(dtype).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, "tiny").model
    place(model, CPU, dtype)
    expected = tiny.model("llama").model.rotary_emb.inv_freq
    assert expected.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


def test_every_kind_of_frequencies_stays_exact() -> None:
    """Gemma 3 has one set for each kind of layer."""
    config = Gemma3TextConfig(**SHAPE, head_dim=16, layer_types=["sliding_attention"])
    exact = {
        name: buffer
        for name, buffer in AutoModelForCausalLM.from_config(config).named_buffers()
        if name.endswith("inv_freq")
    }
    buffers = dict(placed(config, torch.bfloat16).named_buffers())
    assert len(exact) >= 2
    for name, buffer in exact.items():
        assert torch.equal(buffers[name], buffer)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "generic"])
def test_tokens_far_apart_are_read_in_bfloat16_as_in_float32(packed: bool) -> None:
    """Sixteen tokens over a long context; with rounded frequencies their distances are others."""

    def read(dtype: torch.dtype, rounded: bool = False) -> torch.Tensor:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval().requires_grad_(False)
        model.load_state_dict(weights)
        place(model, CPU, dtype)
        if rounded:
            model.model.rotary_emb.to(dtype)
        made = PackedBackbone(model, OPS, 1, 65536) if packed else GenericBackbone(model, OPS, 1)
        with torch.inference_mode():
            logits = made.forward(torch.arange(16), _far_apart(16), None, torch.arange(16))
        return logits.double().log_softmax(-1)

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, initializer_range=0.3)
    weights = AutoModelForCausalLM.from_config(config).bfloat16().state_dict()
    full = read(torch.float32)
    exact, rounded = (
        float((full.exp() * (full - low)).sum(-1).mean())
        for low in (read(torch.bfloat16), read(torch.bfloat16, rounded=True))
    )
    assert exact < 0.01
    assert rounded > 10 * exact


def _far_apart(tokens: int) -> AttentionPlan:
    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    places = range(tokens)
    table, positions = ints([0])[None], ints([4000 * place for place in places])
    bounds = [0, tokens]
    return AttentionPlan(
        ints(bounds), ints([tokens]), table, positions, ints(places), tokens, bounds, [tokens]
    )


def test_weights_that_are_no_plain_numbers_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).requires_grad_(False)
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(
        ConfigError, match=r"layers\.0\.mlp\.down_proj\.weight is stored as float8_e4m3fn, .*bfloat16"
    ):
        place(model, CPU, torch.bfloat16)
    assert math.isfinite(float(layer.weight.float().sum()))
