"""What is done with each field of PEFT's LoraConfig (0.21): honoured, without effect here, or refused.

A test compares this table with the installed PEFT, so that a new field cannot be overlooked.
"""

from __future__ import annotations

from typing import Any

HONOURED = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)

# They steer training or the start of training; the trained A and B are what counts.
WITHOUT_EFFECT: dict[str, tuple[type, ...]] = {
    "peft_version": (str,),
    "revision": (str,),
    "inference_mode": (bool,),
    "lora_dropout": (int, float),
    "fan_in_fan_out": (bool,),  # A and B are stored the same way round for Conv1D
    "loftq_config": (dict,),
    "eva_config": (dict,),
    "corda_config": (dict,),
    "lora_ga_config": (dict,),
    "qalora_group_size": (int,),  # only read with use_qalora
    "runtime_config": (dict,),
}

# Field -> values under which it changes nothing; null, false and empty always count as such.
REFUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (),
    "megatron_config": (),
    "megatron_core": ("megatron.core",),
    "trainable_token_indices": (),
    "use_dora": (),
    "velora_config": (),
    "alora_invocation_tokens": (),
    "use_qalora": (),
    "monteclora_config": (),
    "layer_replication": (),
    "lora_bias": (),
    "target_parameters": (),
    "use_bdlora": (),
    "arrow_config": (),
    "kasa_config": (),
    "ensure_weight_tying": (),
}

WAY_OUT = {
    "modules_to_save": "only LoRA weights can be served over a shared base; train without it",
    "trainable_token_indices": "only LoRA weights can be served over a shared base; train without it",
    "use_dora": "DoRA rescales the base's weights; train without it, or merge it into a base of its own",
    "kasa_config": "KaSA changes the base's weights; train without it",
    "bias": "biases of the base were trained; train with bias='none'",
    "lora_bias": "train with lora_bias=False",
    "alora_invocation_tokens": "activated LoRA is not supported; train a plain LoRA",
    "layer_replication": "the base keeps its own layers; train without it",
    "target_parameters": "only linear modules can be served; use target_modules",
}

# Keys that are no PEFT fields but are known to change nothing.
HARMLESS = frozenset(
    {
        "nvfp4_merge_aware",  # Axolotl
        "merge_weights",  # PEFT before 0.5
        "dtype",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "trl_version",
        "_commit_hash",
    }
)

INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
CONVERT = (
    "it was trained against a changed base and would change the shared one; save it as a plain LoRA with "
    "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=<folder of the untrained adapter>)"
)


def is_unset(value: object) -> bool:
    """null, false, "" and empty collections say nothing."""
    return value is None or value is False or value in ("", [], {})
