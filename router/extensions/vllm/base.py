"""The base that vLLM is to load, as its files say it: no weights are read but for the digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.engine.checkpoint import config_of, digest_of, ends_of, sites_of, tensors_of
from router.engine.prompt import PromptEncoder
from router.errors import ConfigError
from router.models.importing import import_transformers


@dataclass(frozen=True, slots=True)
class VllmBase:
    """A checkpoint and its tokenizer."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    tokenizer: Any
    encoder: PromptEncoder
    ends: frozenset[int]
    sites: Mapping[str, tuple[int, int]]
    digest: str
    size_bytes: int

    @property
    def architecture(self) -> str:
        """Its class, as config.json names it."""
        return str(next(iter(self.config.get("architectures") or ["unknown"])))

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return int(self.config["vocab_size"])


def read_base(model: str) -> VllmBase:
    """Raises ConfigError where it cannot be read."""
    import_transformers()
    from transformers import AutoTokenizer

    from router.models import resolve_model

    folder = resolve_model(model, any_weights=True)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer of {model!r} cannot be loaded: {error}") from error
    tensors = tensors_of(folder)
    if not tensors:
        raise ConfigError(f"{folder} holds no safetensors, and only those are served")
    encoder = PromptEncoder(tokenizer)
    config = config_of(folder)
    return VllmBase(
        folder=folder,
        name=model,
        config=config,
        tokenizer=tokenizer,
        encoder=encoder,
        ends=ends_of(folder) | encoder.end_ids,
        sites=_sites_of_quantised(folder) if config.get("quantization_config") else sites_of(tensors),
        digest=digest_of(tensors),
        size_bytes=sum(tensor.end - tensor.start for tensor in tensors.values()),
    )


def _sites_of_quantised(folder: Path) -> dict[str, tuple[int, int]]:
    """Linear layers of a base whose files hold packed numbers: of the same model without weights."""
    import torch

    import_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.quantization_config = None
    del config.quantization_config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    }
