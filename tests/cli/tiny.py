"""A base of two linear modules, and adapter folders for it, as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODULES = {"model.layers.0.self_attn.q_proj": (8, 8), "model.layers.0.mlp.up_proj": (16, 8)}
EMBEDDING = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)


def write_base(folder: Path) -> Path:
    """config.json and weights, in float32."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 32}))
    weights = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in MODULES.items()}
    weights |= {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": np.ones(8, np.float32)}
    save_file(weights, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, b: float = 0.5, modules=MODULES, manifest: str = "", **extra) -> Path:
    """A PEFT folder of rank 2; `extra` are more tensors."""
    folder.mkdir(parents=True)
    targets = sorted({module.rpartition(".")[2] for module in modules})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    if manifest:
        (folder / "adapter.toml").write_text(manifest)
    tensors = {}
    for module, (rows, columns) in modules.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = np.full((2, columns), 0.5, np.float32)
        tensors[f"{prefix}.lora_B.weight"] = np.full((rows, 2), b, np.float32)
    save_file(tensors | extra, folder / "adapter_model.safetensors")
    return folder
