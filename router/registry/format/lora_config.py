"""`adapter_config.json`, read by an allow-list: every problem becomes a finding, nothing raises.

Every field is honoured, known to have no effect on serving, or refused by name. Nothing named in the file
is imported, no pattern in it is compiled (PEFT #3085, vLLM CVE-2025-66448): sites come from tensor names.

rank_pattern and alpha_pattern do without a regular expression engine. PEFT matches
`re.match(rf"(.*\\.)?({key})$", module)` and takes the first key that fits. The literal forms that people
write are read, others are refused by name:

    q_proj                 a dotted suffix            ^model.layers.0.mlp.up_proj   the whole name
    layers.0.mlp.up_proj   a dotted suffix            .*_proj                       any ending

An escaped dot is a dot, a closing `$` changes nothing. A plain dot is taken as a dot.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    load_json,
    show,
    some,
)

TEXT_CHARS = 512
LOOSE = 64  # patterns that must be tried one by one
META = frozenset("\\^$*+?{}[]|()")
PATTERN = "a pattern, which is not evaluated; LoRA sites are taken from the tensor names"


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """Values by module pattern; the first pattern that fits a module gives its value."""

    suffixes: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # text -> (order, value)
    whole: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    endings: tuple[tuple[str, int, float], ...] = ()

    def get(self, module: str, default: float) -> float:
        """The value for `module`, or `default` if no pattern fits."""
        hits = [self.suffixes[s] for s in dotted_suffixes(module) if s in self.suffixes]
        if module in self.whole:
            hits.append(self.whole[module])
        hits += [(order, value) for text, order, value in self.endings if module.endswith(text)]
        return min(hits)[1] if hits else default

    def unused(self, modules: Collection[str]) -> list[str]:
        """Texts of the patterns that fit none of `modules`."""
        suffixes = {suffix for module in modules for suffix in dotted_suffixes(module)}
        loose = [text for text, *_ in self.endings if not any(m.endswith(text) for m in modules)]
        return (
            [t for t in self.suffixes if t not in suffixes]
            + [t for t in self.whole if t not in modules]
            + loose
        )

    @property
    def values(self) -> list[float]:
        """All values."""
        pairs = [*self.suffixes.values(), *self.whole.values()]
        return [v for _, v in pairs] + [v for _, _, v in self.endings]


def dotted_suffixes(module: str) -> Iterable[str]:
    """`a.b.c`, `b.c`, `c`: the names that a plain key may have for this module."""
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


def read_patterns(values: Mapping[str, float]) -> tuple[ModulePatterns, list[str]]:
    """The patterns, and the keys that cannot be taken literally."""
    suffixes: dict[str, tuple[int, float]] = {}
    whole: dict[str, tuple[int, float]] = {}
    endings: list[tuple[str, int, float]] = []
    refused: list[str] = []
    for order, (key, value) in enumerate(values.items()):
        anchored, loose, text = _literal(key)
        if not text or META.intersection(text):
            refused.append(key)
        elif loose and len(endings) < LOOSE:
            endings.append((text, order, value))
        elif loose:
            refused.append(key)
        else:
            (whole if anchored else suffixes).setdefault(text, (order, value))
    return ModulePatterns(suffixes, whole, tuple(endings)), refused


def _literal(key: str) -> tuple[bool, bool, str]:
    """Whether `key` is anchored, whether it may start anywhere, and its text."""
    anchored = key.startswith("^")
    text = key.removeprefix("^")
    loose = text.startswith(".*")
    text = text.removeprefix(".*").replace("\\.", ".")
    return anchored, loose, text.removesuffix("$")


@dataclass(frozen=True, slots=True)
class ConfigValues:
    """The parsed file and where its problems go."""

    document: Mapping[str, Any]
    found: FolderFindings

    def get(self, field: str) -> Any:
        """The raw value, None if absent."""
        return self.document.get(field)

    def refuse(self, field: str, message: str, code: Code = Code.CONFIG_VALUE) -> None:
        """Refuse the value of a field."""
        self.found.refuse(code, message, f"{CONFIG} {field}")

    def unsupported(self, field: str, value: object, way_out: str) -> None:
        """Refuse a feature, naming field and value."""
        self.refuse(field, f"= {show(value)}: {way_out}", Code.CONFIG_UNSUPPORTED)

    def number(self, field: str, default: int, *, whole: bool, most: float) -> float:
        """A positive number of at most `most`."""
        value = self.document.get(field, default)
        if _positive(value, whole, most):
            return float(value)
        self.refuse(field, f"must be {_words(whole, most)}, is {show(value)}")
        return default

    def flag(self, field: str) -> bool:
        """A boolean; absent and null are false."""
        value = self.get(field)
        if value is not None and not isinstance(value, bool):
            self.refuse(field, f"must be true or false, is {show(value)}")
        return value is True

    def text(self, field: str) -> str:
        """A string; absent and null are empty."""
        value = self.get(field)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > TEXT_CHARS:
            self.refuse(field, f"must be a string of at most {TEXT_CHARS} characters, is {show(value)}")
            return ""
        return value

    def patterns(self, field: str, *, whole: bool, most: float) -> ModulePatterns:
        """A mapping from module pattern to positive number."""
        value = self.get(field)
        if value is None:
            return ModulePatterns()
        if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
            self.refuse(field, f"must be a table of at most {MAX_PATTERNS} entries, is {show(value)}")
            return ModulePatterns()
        wrong = [key for key, number in value.items() if not _positive(number, whole, most)]
        if wrong:
            self.refuse(field, f"every value must be {_words(whole, most)}; wrong at {some(wrong)}")
            return ModulePatterns()
        long = [key for key in value if len(key) > PATTERN_CHARS]
        patterns, refused = read_patterns({k: v for k, v in value.items() if k not in long})
        if long or refused:
            way_out = "patterns are not evaluated; write one entry for each module, by its name"
            self.refuse(field, f"{some(refused + long)}: {way_out}", Code.CONFIG_PATTERN)
        return patterns

    def modules(self, field: str) -> tuple[str, ...] | None:
        """A list of module names; None if it is null or a pattern."""
        value = self.get(field)
        if value is None:
            return None
        if isinstance(value, str):
            self.found.note(Code.CONFIG_PATTERN, f"is {PATTERN}", f"{CONFIG} {field}")
            return None
        return self._names(field, value)

    def layer_names(self, field: str) -> tuple[str, ...]:
        """A name or list of names."""
        value = self.get(field)
        if value is None:
            return ()
        return self._names(field, [value] if isinstance(value, str) else value)

    def layers(self, field: str) -> tuple[int, ...]:
        """A layer index or list of layer indices."""
        value = self.get(field)
        if value is None:
            return ()
        numbers = value if isinstance(value, list) else [value]
        right = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
        if not right or len(numbers) > MAX_MODULES:
            self.refuse(field, f"must be a layer index or a list of them, is {show(value)}")
            return ()
        return tuple(numbers)

    def tokens(self, field: str) -> tuple[int, ...]:
        """A list of token ids; absent, null, false and empty are none."""
        value = self.get(field)
        if value is None or value is False or value == []:
            return ()
        right = isinstance(value, list) and len(value) <= MAX_INVOCATION_TOKENS
        if right and all(type(v) is int and 0 <= v < MAX_TOKEN_ID for v in value):
            return tuple(value)
        shape = f"at most {MAX_INVOCATION_TOKENS} token ids from 0 to {MAX_TOKEN_ID - 1}"
        self.refuse(field, f"must be a list of {shape}, is {show(value)}")
        return ()

    def _names(self, field: str, value: Any) -> tuple[str, ...]:
        right = isinstance(value, list) and len(value) <= MAX_MODULES
        if right and all(isinstance(v, str) and 0 < len(v) <= PATTERN_CHARS for v in value):
            return tuple(value)
        shape = f"at most {MAX_MODULES} names of 1 to {PATTERN_CHARS} characters"
        self.refuse(field, f"must be a list of {shape}, is {show(value)}")
        return ()


def _words(whole: bool, most: float) -> str:
    return f"a {'whole ' if whole else ''}number above 0 and at most {most:g}"


def _positive(value: object, whole: bool, most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return 0 < value <= most  # false for NaN, too


# -- the configuration


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
    target_modules: tuple[str, ...] | None = None  # None: not given, or a pattern that is not read
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


def parse_lora_config(data: bytes) -> tuple[LoraSettings | None, tuple[FolderFinding, ...]]:
    """Read adapter_config.json. Never raises: all problems are findings.

    The settings are None if the file cannot be read at all; with refusals among the findings they are usable
    for further checks only.
    """
    found = FolderFindings()
    document: Any = None
    try:
        if len(data) > CONFIG_BYTES:
            raise JsonError(f"has {len(data)} bytes, at most {CONFIG_BYTES} are allowed")
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
    _check_unknown(values)
    return _settings(values), tuple(found)


def _settings(values: ConfigValues) -> LoraSettings:
    before = values.found.refusals
    rank = values.number("r", 8, whole=True, most=MAX_RANK)
    rank_pattern = values.patterns("rank_pattern", whole=True, most=MAX_RANK)
    ranks_known = values.found.refusals == before
    return LoraSettings(
        r=int(rank),
        alpha=values.number("lora_alpha", 8, whole=False, most=MAX_ALPHA),
        use_rslora=values.flag("use_rslora"),
        rank_pattern=rank_pattern,
        alpha_pattern=values.patterns("alpha_pattern", whole=False, most=MAX_ALPHA),
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
        problem = "is missing" if kind is None else f"is {show(kind)}"
        values.refuse("peft_type", f"{problem}; only LORA adapters can be served", Code.PEFT_TYPE)
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
    for key, neutral in REFUSED.items():
        value = values.get(key)
        if not is_unset(value) and value not in neutral:
            values.unsupported(key, value, WAY_OUT.get(key, "it is not supported; train without it"))


def _check_without_effect(values: ConfigValues) -> None:
    for key, kinds in WITHOUT_EFFECT.items():
        value = values.get(key)
        if value is not None and not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            values.refuse(key, f"must be {names}, is {show(value)}")


def _check_unknown(values: ConfigValues) -> None:
    known = HONOURED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    for key, value in values.document.items():
        if key in known or is_unset(value):
            continue
        if key in HARMLESS:
            values.found.note(Code.CONFIG_IGNORED, f"ignored: {show(value)}", f"{CONFIG} {show(key)}")
        else:
            message = (
                f"unknown field {show(key)} = {show(value)} may change the adapter's answers; "
                "if it is known to be harmless, take it out of the file"
            )
            values.found.refuse(Code.CONFIG_UNKNOWN, message, CONFIG)
