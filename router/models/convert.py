"""GGUF to a plain transformers folder: `python -m router.models.convert FILE.gguf FOLDER`.

Runs in a process of its own; prints `done/total` lines for the parent's progress bar.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

_STEPS = 4


def main(gguf: Path, into: Path) -> None:
    """Write bfloat16 safetensors, config, generation config, tokenizer and chat template."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    _step(0)
    config = AutoConfig.from_pretrained(**source)
    packed = AutoModelForCausalLM.from_pretrained(**source)
    _step(1)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    plain.config.dtype = torch.bfloat16
    _step(2)
    plain.save_pretrained(into)
    _step(3)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    facts = GGUFReader(gguf)
    if _text(facts, "tokenizer.ggml.pre") == "smollm":
        _split_digits(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(into)
    source_facts = {"gguf": gguf.name, "license": _text(facts, "general.license"), "dtype": "bfloat16"}
    (into / "source.json").write_text(json.dumps(source_facts, indent=2) + "\n", encoding="utf-8")
    _step(4)


def _split_digits(tokenizer: Any) -> None:
    """What GGUF calls `smollm` and transformers drops: each digit alone, then byte level.

    Without it "a  12" has other tokens than those the model was trained on.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _text(facts: Any, key: str) -> str:
    field = facts.get_field(key)
    return bytes(field.parts[field.data[0]]).decode() if field is not None else ""


def _step(done: int) -> None:
    sys.stdout.write(f"{done}/{_STEPS}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
