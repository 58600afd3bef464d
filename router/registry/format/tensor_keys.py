"""What a tensor's name says: which part of which LoRA, or what else it is."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Part(StrEnum):
    """What a tensor is."""

    A = "lora_A"
    B = "lora_B"
    FULL = "full weights"  # a whole matrix of the base
    EMBEDDING = "a LoRA of an embedding"
    MAGNITUDE = "a DoRA magnitude"
    BIAS = "a LoRA bias"
    RETRAINED = "retrained tokens"
    IMAGE_MODEL = "a LoRA of an image model"
    OTHER = "unknown"


class TensorKey(NamedTuple):
    """A tensor's name taken apart."""

    part: Part
    module: str  # with whatever prefixes the trainer left


_LORA_ENDINGS = {
    ".lora_A.weight": Part.A,
    ".lora_B.weight": Part.B,
    ".lora_A.default.weight": Part.A,
    ".lora_B.default.weight": Part.B,
}
_MARKS = (
    ("lora_embedding_", Part.EMBEDDING),
    ("lora_magnitude_vector", Part.MAGNITUDE),
    (".magnitude", Part.MAGNITUDE),
    ("trainable_tokens_delta", Part.RETRAINED),
    ("token_adapter.", Part.RETRAINED),
    (".lora_B.bias", Part.BIAS),
    (".lora_B.default.bias", Part.BIAS),
    (".lora_down.", Part.IMAGE_MODEL),  # kohya
    (".lora_up.", Part.IMAGE_MODEL),
    (".lora.down.", Part.IMAGE_MODEL),  # diffusers
    (".lora.up.", Part.IMAGE_MODEL),
)
_IMAGE_PREFIXES = (
    "lora_unet_",
    "lora_te",
    "lora_transformer_",
    "unet.",
    "text_encoder",
    "transformer_blocks.",
)
_IMAGE_PARTS = (".to_q.", ".to_k.", ".to_v.", ".to_out.", "transformer_blocks.", ".attentions.")
_WRAPPERS = (
    ".base_layer",
    ".modules_to_save.default",
    ".modules_to_save",
    ".original_module",
    ".token_adapter",
)


def read_key(name: str) -> TensorKey:
    """Take a tensor's name apart."""
    for ending, part in _LORA_ENDINGS.items():
        if name.endswith(ending):
            return TensorKey(part, name.removesuffix(ending))
    for mark, part in _MARKS:
        if mark in name:
            return TensorKey(part, name)
    if name.startswith(_IMAGE_PREFIXES):
        return TensorKey(Part.IMAGE_MODEL, name)
    if "lora_" not in name and name.endswith((".weight", ".bias")):
        return TensorKey(Part.FULL, _unwrapped(name.rpartition(".")[0]))
    return TensorKey(Part.OTHER, name)


def looks_like_image_model(name: str) -> bool:
    """Whether a name that matches nothing here belongs to a LoRA of an image model."""
    return name.startswith(_IMAGE_PREFIXES) or any(part in name for part in _IMAGE_PARTS)


def _unwrapped(module: str) -> str:
    for wrapper in _WRAPPERS:
        module = module.removesuffix(wrapper)
    return module
