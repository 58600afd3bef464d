"""`adapter_config.json`, read by an allow-list: every problem becomes a finding, nothing raises.

Every field is honoured, known to have no effect on serving, or refused by name. Nothing named in the file
is imported, no pattern in it is compiled (PEFT #3085, vLLM CVE-2025-66448): sites come from tensor names.

rank_pattern and alpha_pattern do without a regular expression engine. PEFT matches
`re.match(rf"(.*\\.)?({key})$", module)` and takes the first key that fits. The literal forms that people
write are read, others are refused by name:

    q_proj                 a dotted suffix            ^model.layers.0.mlp.up_proj   the whole name
    layers.0.mlp.up_proj   a dotted suffix

An escaped dot is a dot, a closing `$` changes nothing. A plain dot is taken as a dot.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from router.registry.format.folder import CONFIG
from router.registry.format.untrusted import (
    CONFIG_BYTES,
    MAX_ALPHA,
    MAX_INVOCATION_TOKENS,
    MAX_MODULES,
    MAX_PATTERNS,
    MAX_RANK,
    MAX_TOKEN_ID,
    PATTERN_CHARS,
    Code,
    FolderFinding,
    FolderFindings,
    JsonError,
    faults,
    load_json,
    named_place,
    show,
    some,
)

TEXT_CHARS = 512
META = frozenset("\\^$*+?{}[]|()")
PATTERN = "a pattern, which is not evaluated; LoRA sites are taken from the tensor names"


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """Values by module, each with its place in the file, the first of which that fits counts. A key is the
    end of a dotted name, or `^` and the whole name."""

    entries: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def get(self, module: str, default: float) -> float:
        """The value for `module`, or `default` if no pattern fits."""
        hits = [self.entries[key] for key in _keys(module) if key in self.entries]
        return min(hits)[1] if hits else default

    def unused(self, modules: Collection[str]) -> list[str]:
        """The patterns that fit none of `modules`."""
        used = {key for module in modules for key in _keys(module)}
        return [key for key in self.entries if key not in used]

    @property
    def values(self) -> list[float]:
        """All values."""
        return [value for _, value in self.entries.values()]


def _keys(module: str) -> Iterable[str]:
    return (f"^{module}", *dotted_suffixes(module))


def dotted_suffixes(module: str) -> Iterable[str]:
    """`a.b.c`, `b.c`, `c`: the names that a plain key may have for this module."""
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


# -- the configuration


# Each field of PEFT's LoraConfig (0.21) is read by LoraSettings or is in one of these tables. A test compares
# them with the installed PEFT, so that a new field cannot be overlooked.

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


def _patterns(value: dict[str, float]) -> ModulePatterns:
    entries: dict[str, tuple[int, float]] = {}
    refused: list[str] = []
    for order, (key, number) in enumerate(value.items()):
        text = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not text or len(key) > PATTERN_CHARS or META.intersection(text):
            refused.append(key)
        else:
            entries.setdefault(f"^{text}" if key.startswith("^") else text, (order, number))
    if refused:
        way_out = "patterns are not evaluated; write one entry for each module, by its name"
        raise PydanticCustomError("config-pattern", "{text}", {"text": f"{some(refused)}: {way_out}"})
    return ModulePatterns(entries)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Rank = Annotated[int, Strict(), Field(gt=0, le=MAX_RANK)]
Alpha = Annotated[float, Strict(), Field(gt=0, le=MAX_ALPHA)]
Names = tuple[Annotated[str, Strict(), Field(min_length=1, max_length=PATTERN_CHARS)], ...]
Layer = Annotated[int, Strict(), Field(ge=0)]
Token = Annotated[int, Strict(), Field(ge=0, lt=MAX_TOKEN_ID)]


def _by_module(number: Any) -> PlainValidator:
    values = TypeAdapter[dict[str, float]](Annotated[dict[str, number], Field(max_length=MAX_PATTERNS)])
    return PlainValidator(lambda value: _patterns(values.validate_python(value)))


class LoraSettings(BaseModel):
    """What adapter_config.json says, as far as serving needs it. Defaults are PEFT's."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    r: Rank = 8
    alpha: Alpha = Field(8.0, validation_alias="lora_alpha")
    use_rslora: Annotated[bool, Strict()] = False
    rank_pattern: Annotated[ModulePatterns, _by_module(Rank)] = ModulePatterns()
    alpha_pattern: Annotated[ModulePatterns, _by_module(Alpha)] = ModulePatterns()
    # None: not given, or a pattern that is not read
    target_modules: Annotated[Names, Field(max_length=MAX_MODULES)] | None = None
    # None: a pattern that is not read
    exclude_modules: Annotated[Names, Field(max_length=MAX_MODULES)] | None = ()
    layers_to_transform: Annotated[
        tuple[Layer, ...], Field(max_length=MAX_MODULES), BeforeValidator(_listed)
    ] = ()
    layers_pattern: Annotated[Names, Field(max_length=MAX_MODULES), BeforeValidator(_listed)] = ()
    base_model: Annotated[str, Strict(), Field(max_length=TEXT_CHARS)] = Field(
        "", validation_alias="base_model_name_or_path"
    )
    # Of an activated LoRA: it acts from their last occurrence on.
    invocation_tokens: Annotated[tuple[Token, ...], Field(max_length=MAX_INVOCATION_TOKENS)] = Field(
        (), validation_alias="alora_invocation_tokens"
    )
    ranks_known: bool = True  # False: r or rank_pattern was refused

    def rank_at(self, module: str) -> int:
        """Rank of the LoRA at `module`."""
        return int(self.rank_pattern.get(module, self.r))

    def scaling_at(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732)."""
        rank = self.rank_at(module)
        alpha: float = self.alpha_pattern.get(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def largest_rank(self) -> int:
        """The largest rank that any site may have."""
        return int(max([self.r, *self.rank_pattern.values]))


NUMBERS = ("r", "lora_alpha")  # which null does not leave at PEFT's default
_READ = {str(f.validation_alias or name) for name, f in LoraSettings.model_fields.items()} - {"ranks_known"}
HONOURED = frozenset(_READ | {"peft_type", "task_type", "auto_mapping", "init_lora_weights"})


@lru_cache(4)  # adapters of one recipe have the same bytes
def parse_lora_config(data: bytes) -> tuple[LoraSettings | None, tuple[FolderFinding, ...]]:
    """Read adapter_config.json. Never raises: all problems are findings.

    The settings are None if the file cannot be read at all; with refusals among the findings they are usable
    for further checks only.
    """
    found = FolderFindings()
    try:
        if len(data) > CONFIG_BYTES:
            raise JsonError(f"has {len(data)} bytes, at most {CONFIG_BYTES} are allowed")
        document = load_json(data)
        if not isinstance(document, dict):
            raise JsonError(f"must be a JSON object, is {show(document)}")
    except JsonError as error:
        found.refuse(Code.CONFIG_SYNTAX, str(error), CONFIG)
        return None, tuple(found)
    _check_type(document, found)
    _check_init(document.get("init_lora_weights"), found)
    _check_fields(document, found)
    return _settings(document, found), tuple(found)


def _settings(document: Mapping[str, Any], found: FolderFindings) -> LoraSettings:
    given = {k: v for k, v in document.items() if k in _READ and (k in NUMBERS or not is_unset(v))}
    for key in ("target_modules", "exclude_modules"):
        if isinstance(given.get(key), str):
            found.note(Code.CONFIG_PATTERN, f"is {PATTERN}", f"{CONFIG} {key}")
            given[key] = None
    try:
        return LoraSettings.model_validate(given)
    except ValidationError as error:
        told = dict[str, None]()
        for place, kind, text in faults(error):
            if (key := str(place[0])) not in told:
                code = Code.CONFIG_PATTERN if kind == Code.CONFIG_PATTERN else Code.CONFIG_VALUE
                found.refuse(code, f"{named_place(place[1:])} {text}".lstrip(), f"{CONFIG} {key}")
            told[key] = None
        bad = {str(fault["loc"][0]) for fault in error.errors(include_url=False, include_context=False)}
    rest = {key: value for key, value in given.items() if key not in bad}
    return LoraSettings.model_validate({**rest, "ranks_known": bad.isdisjoint({"r", "rank_pattern"})})


def _refuse(found: FolderFindings, field: str, message: str, code: Code = Code.CONFIG_VALUE) -> None:
    found.refuse(code, message, f"{CONFIG} {field}")


def _check_type(document: Mapping[str, Any], found: FolderFindings) -> None:
    kind = document.get("peft_type")
    if kind != "LORA":
        problem = "is missing" if kind is None else f"is {show(kind)}"
        _refuse(found, "peft_type", f"{problem}; only LORA adapters can be served", Code.PEFT_TYPE)
    task = document.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        _refuse(found, "task_type", f"is {show(task)}; only CAUSAL_LM can be served", Code.TASK_TYPE)
    mapping = document.get("auto_mapping")
    if not is_unset(mapping) and not _written_by_peft(mapping):
        text = f"= {show(mapping)}: nothing named in a configuration is ever imported"
        _refuse(found, "auto_mapping", text, Code.CONFIG_UNSUPPORTED)


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


def _check_init(init: object, found: FolderFindings) -> None:
    if init is None or isinstance(init, bool):
        return
    name = init.lower() if isinstance(init, str) else ""
    if name == "lora_ga":
        message = "LoRA-GA may have shifted the base while training; quality is only kept if it was converted"
        found.note(Code.CONFIG_VALUE, message, f"{CONFIG} init_lora_weights")
    elif name.startswith(INITS_THAT_CHANGE_THE_BASE):
        _refuse(found, "init_lora_weights", f"{show(init)}: {CONVERT}", Code.INIT_CHANGES_BASE)
    elif name not in INITS:
        known = ", ".join(sorted(INITS))
        _refuse(found, "init_lora_weights", f"{show(init)} is not known; known: true, false, {known}")


def _check_fields(document: Mapping[str, Any], found: FolderFindings) -> None:
    """Refuse what would change answers and is not done here, and what is not known."""
    for key, neutral in REFUSED.items():
        value = document.get(key)
        if not is_unset(value) and value not in neutral:
            way_out = WAY_OUT.get(key, "it is not supported; train without it")
            _refuse(found, key, f"= {show(value)}: {way_out}", Code.CONFIG_UNSUPPORTED)
    for key, kinds in WITHOUT_EFFECT.items():
        value = document.get(key)
        if value is not None and not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            _refuse(found, key, f"must be {names}, is {show(value)}")
    known = HONOURED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    for key, value in document.items():
        if key in known or is_unset(value):
            continue
        if key in HARMLESS:
            found.note(Code.CONFIG_IGNORED, f"ignored: {show(value)}", f"{CONFIG} {show(key)}")
        else:
            message = (
                f"unknown field {show(key)} = {show(value)} may change the adapter's answers; "
                "if it is known to be harmless, take it out of the file"
            )
            found.refuse(Code.CONFIG_UNKNOWN, message, CONFIG)
