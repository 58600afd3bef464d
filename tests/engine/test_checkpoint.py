"""A base as files: the digest of the loaded model, its linear layers and its ends, without loading it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from router.engine.checkpoint import (
    BLOCK,
    NAMES,
    Tensor,
    cache_bytes,
    config_of,
    digest_of,
    ends_of,
    float32_of,
    sites_of,
    stored_as,
    tensors_of,
)
from router.engine.loader import base_digest
from tests.engine import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny.model("llama").to(getattr(torch, request.param)).save_pretrained(tmp_path)
    return tmp_path


def test_the_digest_is_that_of_the_loaded_model(saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    assert digest_of(tensors_of(saved)) == base_digest(model)


def test_blocks_of_a_file_that_is_cut_meanwhile_end_in_an_error(tmp_path: Path) -> None:
    """Of a mapped file they would end the process."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 * BLOCK))
    blocks = Tensor(file, "BF16", (BLOCK + 1,), 10, 2 * BLOCK + 12).blocks()
    assert len(next(blocks)) == BLOCK
    os.truncate(file, BLOCK + 100)
    with pytest.raises(EOFError, match="weights is shorter than its header says"):
        next(blocks)


def test_a_tied_head_that_was_stored_does_not_count(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    plain = digest_of(tensors_of(tmp_path))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, file)
    assert digest_of(tensors_of(tmp_path)) == plain
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, file)
    assert digest_of(tensors_of(tmp_path)) != plain


def test_layers_and_ends(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    sites = sites_of(tensors_of(tmp_path))
    assert sites["model.layers.0.self_attn.k_proj"] == (32, 64)
    assert len(sites) == 2 * 7
    assert ends_of(tmp_path) == {257}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert ends_of(tmp_path) == {3, 4}
    assert cache_bytes(config_of(tmp_path), 2) == 2 * 2 * 16 * 2 * 2


def test_a_model_of_more_than_text_has_its_texts_configuration(tmp_path: Path) -> None:
    said = {"architectures": ["Seeing"], "text_config": {"vocab_size": 7, "architectures": None}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    config = config_of(tmp_path)
    assert (config["vocab_size"], config["architectures"]) == (7, ["Seeing"])
    assert ends_of(tmp_path) == frozenset()


def test_a_file_that_was_cut_is_noticed(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    tensors = tensors_of(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(EOFError):
        digest_of(tensors)


VALUES = np.array(
    [0, -0.0, 1, 1.00390625, 1.01171875, 3.4e38, -1e-40, 65505, 1e-8, np.inf, -np.inf, np.nan], np.float32
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_as_torch_has_it(dtype: str) -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([VALUES, rng.standard_normal(1000).astype(np.float32)])
    torchs = torch.from_numpy(values).to(getattr(torch, dtype))
    stored = stored_as(NAMES[dtype], values)
    assert np.array_equal(float32_of(NAMES[dtype], stored), torchs.float().numpy(), equal_nan=True)
