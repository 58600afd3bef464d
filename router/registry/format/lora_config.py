"""`adapter_config.json`, read by an allow-list.

Every field is honoured, known to have no effect on serving, or refused by name. Nothing named in the file
is imported, no pattern in it is compiled (PEFT #3085, vLLM CVE-2025-66448): sites come from tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from router.registry.format import limits
from router.registry.format.config_values import ConfigValues, ModulePatterns
from router.registry.format.findings import Code, Finding, Findings
from router.registry.format.folder import CONFIG
from router.registry.format.parsing import JsonError, load_json
from router.registry.format.text import show

# What is done with each field of PEFT's LoraConfig (0.21). A test compares these tables with the installed
# PEFT, so that a new field cannot be overlooked.
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
        "alora_invocation_tokens",
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
    "modules_to_save": "only LoRA weights can be served over a shared base; train without it, or where they "
    "equal the base's drop them with `lora-router adapters convert`",
    "trainable_token_indices": "only LoRA weights can be served over a shared base; train without it",
    "use_dora": "DoRA rescales the base's weights; train without it, or merge it into a base of its own",
    "kasa_config": "KaSA changes the base's weights; train without it",
    "bias": "biases of the base were trained; train with bias='none'",
    "lora_bias": "train with lora_bias=False",
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


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What adapter_config.json says, as far as serving needs it. Defaults are PEFT's."""

    r: int = 8
    alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: ModulePatterns = ModulePatterns()
    alpha_pattern: ModulePatterns = ModulePatterns()
    target_modules: tuple[str, ...] | None = None  # None: not said, or a pattern that is not read
    exclude_modules: tuple[str, ...] | None = ()  # None: a pattern that is not read
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    base_model: str = ""
    invocation_tokens: tuple[int, ...] = ()  # activated LoRA: it acts from their last occurrence on
    ranks_known: bool = True  # False: r or rank_pattern was refused

    def rank_at(self, module: str) -> int:
        """Rank of the LoRA at `module`."""
        return int(self.rank_pattern.get(module, self.r))

    def scaling_at(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732)."""
        rank = self.rank_at(module)
        return self.alpha_pattern.get(module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def largest_rank(self) -> int:
        """The largest rank that any site may have."""
        return int(max([self.r, *self.rank_pattern.values]))


def parse_lora_config(
    data: bytes, ignore_fields: Collection[str] = ()
) -> tuple[LoraSettings | None, tuple[Finding, ...]]:
    """Read adapter_config.json. Never raises: all problems are findings.

    `ignore_fields` names unknown keys that the operator knows to be harmless. The settings are None if the
    file cannot be read at all; with refusals among the findings they are usable for further checks only.
    """
    found = Findings()
    document: Any = None
    try:
        if len(data) > limits.CONFIG_BYTES:
            raise JsonError(f"has {len(data)} bytes, at most {limits.CONFIG_BYTES} are allowed")
        document = load_json(data)
        if not isinstance(document, dict):
            raise JsonError(f"must be a JSON object, is {show(document)}")
    except JsonError as error:
        found.refuse(Code.CONFIG_SYNTAX, str(error), CONFIG)
        return None, tuple(found)
    values = ConfigValues(document, found)
    _check_type(values)
    _check_init(values)
    _check_refused(values)
    _check_without_effect(values)
    _check_unknown(values, ignore_fields)
    return _settings(values), tuple(found)


def _settings(values: ConfigValues) -> LoraSettings:
    before = values.found.refusals
    rank = values.number("r", 8, whole=True, most=limits.RANK)
    rank_pattern = values.patterns("rank_pattern", whole=True, most=limits.RANK)
    ranks_known = values.found.refusals == before
    return LoraSettings(
        r=int(rank),
        alpha=values.number("lora_alpha", 8, whole=False, most=limits.ALPHA),
        use_rslora=values.flag("use_rslora"),
        rank_pattern=rank_pattern,
        alpha_pattern=values.patterns("alpha_pattern", whole=False, most=limits.ALPHA),
        target_modules=values.modules("target_modules"),
        exclude_modules=() if is_unset(values.get("exclude_modules")) else values.modules("exclude_modules"),
        layers_to_transform=values.layers("layers_to_transform"),
        layers_pattern=values.layer_names("layers_pattern"),
        base_model=values.text("base_model_name_or_path"),
        invocation_tokens=values.tokens("alora_invocation_tokens"),
        ranks_known=ranks_known,
    )


def _check_type(values: ConfigValues) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        said = "is missing" if kind is None else f"is {show(kind)}"
        values.refuse("peft_type", f"{said}; only LORA adapters can be served", Code.PEFT_TYPE)
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        values.refuse("task_type", f"is {show(task)}; only CAUSAL_LM can be served", Code.TASK_TYPE)
    mapping = values.get("auto_mapping")
    if not is_unset(mapping) and not _written_by_peft(mapping):
        values.unsupported("auto_mapping", mapping, "nothing named in a configuration is ever imported")


def _written_by_peft(mapping: object) -> bool:
    """PEFT notes the base's class here when task_type is null. It is not used."""
    if not isinstance(mapping, dict) or mapping.keys() != {"base_model_class", "parent_library"}:
        return False
    library = mapping["parent_library"]
    return (
        isinstance(mapping["base_model_class"], str)
        and isinstance(library, str)
        and library.startswith("transformers.models.")
    )


def _check_init(values: ConfigValues) -> None:
    init = values.get("init_lora_weights")
    if init is None or isinstance(init, bool):
        return
    name = init.lower() if isinstance(init, str) else ""
    if name == "lora_ga":
        message = "LoRA-GA may have shifted the base while training; quality is only kept if it was converted"
        values.found.note(Code.CONFIG_VALUE, message, f"{CONFIG} init_lora_weights")
    elif name.startswith(INITS_THAT_CHANGE_THE_BASE):
        values.refuse("init_lora_weights", f"{show(init)}: {CONVERT}", Code.INIT_CHANGES_BASE)
    elif name not in INITS:
        known = ", ".join(sorted(INITS))
        values.refuse("init_lora_weights", f"{show(init)} is not known; known: true, false, {known}")


def _check_refused(values: ConfigValues) -> None:
    for field, neutral in REFUSED.items():
        value = values.get(field)
        if not is_unset(value) and value not in neutral:
            values.unsupported(field, value, WAY_OUT.get(field, "it is not supported; train without it"))


def _check_without_effect(values: ConfigValues) -> None:
    for field, kinds in WITHOUT_EFFECT.items():
        value = values.get(field)
        if value is not None and not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            values.refuse(field, f"must be {names}, is {show(value)}")


def _check_unknown(values: ConfigValues, ignore_fields: Collection[str]) -> None:
    known = HONOURED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    for key, value in values.document.items():
        if key in known or is_unset(value):
            continue
        if key in HARMLESS or key in ignore_fields:
            values.found.note(Code.CONFIG_IGNORED, f"ignored: {show(value)}", f"{CONFIG} {show(key)}")
        else:
            message = (
                f"unknown field {show(key)} = {show(value)} may change the adapter's answers; "
                f"if it is known to be harmless, ignore it with --ignore-field"
            )
            values.found.refuse(Code.CONFIG_UNKNOWN, message, CONFIG)
