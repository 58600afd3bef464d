"""What trainers leave behind: 22 variants that PEFT handles in its own way, and one folder per trainer.

Each builder gets the folder to fill and one that PEFT saved cleanly. `expect` is the code of the refusal or
of the note that must be given, or nothing where the folder must be accepted without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.registry.format.peft_folders import copy, edit_config, edit_tensors, rename, save, train

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Variant:
    """One folder and what must be said of it."""

    name: str
    accepted: bool
    expect: str
    build: Callable[[Path, Path], object]
    words: tuple[str, ...] = ()


def _renamed(change: Callable[[str], str]) -> Callable[[Path, Path], None]:
    return lambda folder, clean: rename(copy(clean, folder), change)


def _configured(**changes: object) -> Callable[[Path, Path], None]:
    return lambda folder, clean: edit_config(copy(clean, folder), **changes)


def _changed(
    change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
) -> Callable[[Path, Path], None]:
    return lambda folder, clean: edit_tensors(copy(clean, folder), change)


def _kohya(name: str) -> str:
    module = name.removeprefix(PREFIX).rpartition(".lora_")[0].replace(".", "_")
    return f"lora_te_{module}.lora_{'down' if 'lora_A' in name else 'up'}.weight"


def _diffusers(name: str) -> str:
    return name.replace(f"{PREFIX}model.layers.", "unet.mid_block.attentions.").replace(
        "self_attn.q_proj", "to_q"
    )


def _with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


VARIANTS = (
    # PEFT loads these eight as an unchanged base
    Variant(
        "compiled inner module",
        True,
        "keys-normalised",
        _renamed(lambda n: n.replace("model.model.layers", "model.model._orig_mod.layers")),
        ("8 tensor names", "_orig_mod"),
    ),
    Variant("prefix missing", True, "keys-normalised", _renamed(lambda n: n.removeprefix(PREFIX))),
    Variant("prefix doubled", True, "keys-normalised", _renamed(lambda n: PREFIX + n)),
    Variant(
        "language_model wrapper",
        True,
        "keys-normalised",
        _renamed(lambda n: n.replace("model.model.layers", "model.language_model.model.layers")),
    ),
    Variant("kohya keys", False, "keys-unmatched", _renamed(_kohya), ("lora_te_",)),
    Variant("diffusers keys", False, "keys-unmatched", _renamed(_diffusers), ("unet.",)),
    Variant(
        "wrong target_modules",
        False,
        "target-without-weights",
        _configured(target_modules=["k_proj"]),
        ("k_proj",),
    ),
    Variant("peft_type IA3", False, "peft-type", _configured(peft_type="IA3"), ("'IA3'",)),
    # and these two partly
    Variant(
        "missing layers",
        False,
        "target-without-weights",
        _changed(lambda ts: {n: t for n, t in ts.items() if "layers.1." not in n}),
        ("layers.1.self_attn",),
    ),
    Variant(
        "deeper base",
        False,
        "keys-unmatched",
        lambda folder, _: save(folder, train(layers=3)),
        ("layers.2.self_attn", "nearest modules", "model.layers.1.self_attn"),
    ),
    # these five without a word
    Variant("NaN weights", False, "not-finite", _changed(_with_nan), ("lora_A.weight",)),
    Variant("negative alpha", False, "config-value", _configured(lora_alpha=-8), ("lora_alpha", "-8")),
    Variant(
        "another base's name",
        True,
        "other-base-name",
        _configured(base_model_name_or_path="org/other"),
        ("org/other", "org/tiny-llama"),
    ),
    Variant("SEQ_CLS", False, "task-type", _configured(task_type="SEQ_CLS"), ("SEQ_CLS",)),
    Variant("future peft_version", True, "", _configured(peft_version="9.9.9")),
    # these three fail
    Variant("rank mismatch", False, "rank-mismatch", _configured(r=8), ("rank 8", "[4, 16]")),
    Variant("r = 0", False, "config-value", _configured(r=0), ("adapter_config.json r",)),
    Variant("no peft_type", False, "peft-type", _configured(peft_type=...), ("missing",)),
    # harmless
    Variant(".default. in keys", True, "", _renamed(lambda n: n.replace(".weight", ".default.weight"))),
    Variant(
        "unknown key",
        False,
        "config-unknown-key",
        _configured(future_option=3),
        ("'future_option'", "take it out of the file"),
    ),
    # these change the base's weights
    Variant(
        "PiSSA",
        False,
        "init-changes-base",
        lambda f, _: save(f, train(init_lora_weights="pissa")),
        ("pissa", "path_initial_model_for_weight_conversion"),
    ),
    Variant(
        "OLoRA",
        False,
        "init-changes-base",
        lambda f, _: save(f, train(init_lora_weights="olora")),
        ("olora", "path_initial_model_for_weight_conversion"),
    ),
)
