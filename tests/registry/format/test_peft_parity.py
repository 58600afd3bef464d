"""Rank, hasher and weights of every site are PEFT's own, and no field of LoraConfig is overlooked."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from router.engine.base import TensorData
from router.registry.format.artifact import FolderRules, read_artifact
from router.registry.format.lora_config import HONOURED, REFUSED, WITHOUT_EFFECT, parse_lora_config
from tests.registry.format.peft_folders import base_info, edit_tensors, save, tiny_llama, train

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1]},
    "one layer, by number and list name": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "full name beside layers": {
        "layers_to_transform": [1],
        "target_modules": ["v_proj", "model.layers.0.self_attn.q_proj"],
    },
    "excluded": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by pattern": {"exclude_modules": r".*\.0\.self_attn\.q_proj"},
    "targets by pattern": {"target_modules": r"model\.layers\.1\.(self_attn\.q_proj|mlp\.up_proj)"},
    "activated": {"alora_invocation_tokens": [3, 1]},
    "rank stabilised": {"use_rslora": True, "r": 3},
    "rank pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha pattern": {"alpha_pattern": {"v_proj": 32}},
    "suffix of several parts": {"rank_pattern": {"layers.1.self_attn.q_proj": 7}},
    "whole name": {"rank_pattern": {"^model.layers.0.self_attn.v_proj$": 5}},
    "anchored suffix fits nothing": {"rank_pattern": {"^layers.0.self_attn.v_proj": 5}},
    "part of a word fits nothing": {"rank_pattern": {"proj": 5, "attn.q_proj": 6}},
    "escaped dot": {"alpha_pattern": {"self_attn\\.q_proj": 5}},
    "first of two that fit": {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 6}},
    "first in the file, which PEFT sorts": {"alpha_pattern": {"q_proj": 6, "layers.0.self_attn.q_proj": 2}},
    "first, suffix before whole": {"alpha_pattern": {"q_proj": 1, "^model.layers.0.self_attn.q_proj": 9}},
    "everything": {
        "use_rslora": True,
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, "mlp.up_proj": 16, "^model.layers.1.mlp.down_proj": 1},
        "alpha_pattern": {"k_proj": 3, "layers.0.self_attn.q_proj": 64},
    },
}


def _array(tensor: TensorData) -> np.ndarray:
    if tensor.dtype == "BF16":
        bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(tensor.shape)
    return np.frombuffer(tensor.data, {"F32": "<f4", "F16": "<f2"}[tensor.dtype]).reshape(tensor.shape)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_every_site_has_pefts_rank_hasher_and_weights(config, tmp_path):
    folder = save(tmp_path / "a", train(**config))
    model = PeftModel.from_pretrained(tiny_llama(), folder)  # not as trained: PEFT sorts what it saves
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    artifact, _ = read_artifact(folder, FolderRules(base_info(tiny_llama())))
    assert artifact.sites.keys() == layers.keys()
    for site, delta in artifact.sites.items():
        layer = layers[site]
        assert (delta.rank, delta.scaling) == (layer.r["default"], layer.scaling["default"])
        mine = delta.scaling * _array(delta.b) @ _array(delta.a)
        np.testing.assert_allclose(mine, layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-6)


def test_patterns_that_fit_nothing_are_noted(tmp_path):
    config = {"rank_pattern": {"q_proj": 4, "proj": 5}, "alpha_pattern": {"^v_proj": 2, "_up": 2}}
    folder = save(tmp_path / "a", train(**config))
    _, inspection = read_artifact(folder, FolderRules(base_info(tiny_llama())))
    assert [(f.code, f.where.split()[1]) for f in inspection.findings] == [
        ("config-pattern", "rank_pattern"),
        ("config-pattern", "alpha_pattern"),
    ]
    assert "'^v_proj', '_up'" in inspection.findings[1].message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_carried_bit_for_bit(dtype, tmp_path):
    model = train()
    folder = save(tmp_path / "a", model)
    edit_tensors(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    artifact, _ = read_artifact(folder, FolderRules(base_info(tiny_llama())))
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    expected = layer.lora_A["default"].weight.detach().to(dtype).float().numpy()
    assert np.array_equal(_array(artifact.sites["model.layers.1.self_attn.v_proj"].a), expected)


def test_every_field_of_lora_config_is_decided():
    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    decided = HONOURED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    assert fields - decided == set(), "decide what to do with these new fields"
    assert decided - fields == set(), "PEFT has dropped these"
    assert len(HONOURED) + len(WITHOUT_EFFECT) + len(REFUSED) == len(decided)


def test_pefts_defaults_are_accepted_without_a_word_and_are_the_settings_defaults():
    written = LoraConfig(target_modules=["q_proj"]).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in written.items()}
    settings, findings = parse_lora_config(json.dumps(plain).encode())
    assert findings == ()
    minimal, findings = parse_lora_config(b'{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    assert findings == ()
    assert settings == minimal
