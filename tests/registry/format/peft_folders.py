"""Adapter folders saved by PEFT itself from a tiny Llama, and tools to change them afterwards."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from router.engine.base import BaseInfo

VOCAB = 64
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Tensors = dict[str, torch.Tensor]


def tiny_llama(layers: int = 2, vocab: int = VOCAB) -> LlamaForCausalLM:
    """A Llama of a few thousand parameters, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def base_info(model: LlamaForCausalLM) -> BaseInfo:
    """What the engine would say of `model`."""
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return BaseInfo(
        name="org/tiny-llama",
        digest="ab" * 32,
        architecture="llama",
        dtype="float32",
        device="cpu",
        context_length=128,
        vocab_size=VOCAB,
        sites={name: (m.out_features, m.in_features) for name, m in linear.items()},
    )


def train(layers: int = 2, vocab: int = VOCAB, **config: Any) -> PeftModel:
    """A PEFT model with random A and B, as after training."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_llama(layers, vocab), LoraConfig(**{**settings, **config}))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def save(folder: Path, model: PeftModel, **options: Any) -> Path:
    """`save_pretrained`, with the base's name that a hub model would have."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = config.base_model_name_or_path or "org/tiny-llama"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(
            folder, save_embedding_layers=options.pop("save_embedding_layers", False), **options
        )
    return folder


def copy(clean: Path, folder: Path) -> Path:
    """A copy of a saved folder, to be changed."""
    return Path(shutil.copytree(clean, folder, dirs_exist_ok=True))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of adapter_config.json; `None` as a class `Ellipsis` value removes one."""
    path = folder / CONFIG
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> None:
    """Replace the tensors by what `change` makes of them."""
    tensors = {name: t.clone().contiguous() for name, t in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Rename the tensors."""
    edit_tensors(folder, lambda tensors: {change(name): t for name, t in tensors.items()})
