"""`benchmarks.larger` as far as it goes without a measurement: shapes, files and the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import llama_gguf
from benchmarks.larger_page import text
from benchmarks.larger_shapes import SHAPES, WEIGHTS, Shape, config_of, sites_of, weights_of, write_weights
from benchmarks.sections import Section

LLAMA = SHAPES["llama-1b"]
TINY = Shape("tiny", "Tiny", "llama", 8, 12, 2, 4, 2, 4, 50, 64, 0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_shape_has_the_published_number_of_parameters(shape: Shape) -> None:
    assert sum(math.prod(size) for _, size in weights_of(shape)) == shape.parameters


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_weights_are_those_that_transformers_makes_of_the_config(shape: Shape) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_of(shape)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == dict(weights_of(shape))


def test_adapters_change_the_seven_linear_layers_of_each_layer() -> None:
    sites = sites_of(LLAMA)
    assert len(sites) == 7 * LLAMA.layers
    assert sites["model.layers.15.mlp.down_proj"] == (2048, 8192)
    assert sum(outputs * inputs for outputs, inputs in sites.values()) == LLAMA.linear


def test_weights_are_the_same_at_each_writing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_weights(TINY, tmp_path / name)
    found = load_file(tmp_path / "a")
    assert {name: tuple(weight.shape) for name, weight in found.items()} == dict(weights_of(TINY))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert float(found["model.layers.0.mlp.up_proj.weight"].std()) == pytest.approx(0.02, rel=0.3)


def test_gguf_keeps_the_values_and_lays_rotated_pairs_side_by_side(tmp_path: Path) -> None:
    write_weights(TINY, tmp_path / WEIGHTS)
    found = load_file(tmp_path / WEIGHTS)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(replace(TINY, kind="qwen3"))))
    pieces = {name: values for name, _, values in llama_gguf.pieces(tmp_path)}
    up = found["model.layers.1.mlp.up_proj.weight"]
    assert np.array_equal(pieces["blk.1.ffn_up.weight"](), up.view(torch.uint16).numpy())
    config.write_text(json.dumps(config_of(TINY)))
    turned = {name: values for name, _, values in llama_gguf.pieces(tmp_path)}
    q = found["model.layers.0.self_attn.q_proj.weight"].view(torch.uint16).numpy()
    assert np.array_equal(
        turned["blk.0.attn_q.weight"](), q[[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]]
    )


def test_the_page_says_which_goals_are_met_and_what_was_left_out() -> None:
    sections = {
        "decode": Section(
            facts={
                "one, 0": {"ms": 50.0, "memory ms": 45.0, "share": 0.9},
                "one, 1": {"ms": 55.0, "memory ms": 46.0, "share": 0.84},
                "many, 0": {"speed": 100.0},
                "many, 8": {"speed": 90.0},
            },
            rounds=2,
        ),
        "vllm-base": Section(facts={"one, 0": {"ms": 100.0}, "many, 0": {"speed": 40.0}}),
        "vllm-adapters": Section(facts={"many, 8": {"speed": 8.0, "shortened": True}}),
        "peft": Section(skipped="PEFT ended: exit code 1.\n  Traceback\n  KeyError: 'x'"),
    }
    page = text(LLAMA, sections)
    assert "time to read all weights (45.0 ms, 55 GB/s) / a token: 0.90 (goal: at least 0.85, met)" in page
    assert "8 adapters / no adapter, 16 requests: 0.90 (goal: at least 0.97, MISSED)" in page
    assert "16 requests / vLLM: 2.5 (goal: at least 2.5, met)" in page
    assert "16 requests with 8 adapters / vLLM: 11.2 (goal: at least 10, met)" in page
    assert "8, shortened" in page
    assert "- peft: left out: PEFT ended: exit code 1. KeyError: 'x'" in page


def test_a_prompt_of_the_peak_speed_has_the_whole_share() -> None:
    operations = LLAMA.prompt_operations(2000)
    assert operations == pytest.approx(2 * 2000 * LLAMA.linear, rel=0.1)
    facts = {
        "prompts": {"2000": 2 * operations / 1e12},
        "peak": {"rate": 1e12, "unit": "amx-bf16", "by": "torch", "size": [1, 2, 3]},
    }
    page = text(LLAMA, {"prompt": Section(facts=facts)})
    assert "a prompt of 2,000 tokens, of that peak: 0.50 (goal: at least 0.7, MISSED)" in page
