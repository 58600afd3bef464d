"""Typed reading of adapter_config.json: every problem becomes a finding, nothing raises.

rank_pattern and alpha_pattern do without a regular expression engine. PEFT matches
`re.match(rf"(.*\\.)?({key})$", module)` and takes the first key that fits; keys come from a file, so nothing
is compiled here. The literal forms that people write are read, others are refused by name:

    q_proj                 a dotted suffix            ^model.layers.0.mlp.up_proj   the whole name
    layers.0.mlp.up_proj   a dotted suffix            .*_proj                       any ending

An escaped dot is a dot, a closing `$` changes nothing. A plain dot is taken as a dot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.registry.format import limits
from router.registry.format.findings import Code, Findings
from router.registry.format.folder import CONFIG
from router.registry.format.text import show, some

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
    found: Findings

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
        if not isinstance(value, dict) or len(value) > limits.PATTERNS:
            self.refuse(field, f"must be a table of at most {limits.PATTERNS} entries, is {show(value)}")
            return ModulePatterns()
        wrong = [key for key, number in value.items() if not _positive(number, whole, most)]
        if wrong:
            self.refuse(field, f"every value must be {_words(whole, most)}; wrong at {some(wrong)}")
            return ModulePatterns()
        long = [key for key in value if len(key) > limits.PATTERN_CHARS]
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
        if not right or len(numbers) > limits.MODULES:
            self.refuse(field, f"must be a layer index or a list of them, is {show(value)}")
            return ()
        return tuple(numbers)

    def tokens(self, field: str) -> tuple[int, ...]:
        """A list of token ids; absent, null, false and empty are none."""
        value = self.get(field)
        if value is None or value is False or value == []:
            return ()
        right = isinstance(value, list) and len(value) <= limits.INVOCATION
        if right and all(type(v) is int and 0 <= v < limits.TOKEN for v in value):
            return tuple(value)
        shape = f"at most {limits.INVOCATION} token ids from 0 to {limits.TOKEN - 1}"
        self.refuse(field, f"must be a list of {shape}, is {show(value)}")
        return ()

    def _names(self, field: str, value: Any) -> tuple[str, ...]:
        right = isinstance(value, list) and len(value) <= limits.MODULES
        if right and all(isinstance(v, str) and 0 < len(v) <= limits.PATTERN_CHARS for v in value):
            return tuple(value)
        shape = f"at most {limits.MODULES} names of 1 to {limits.PATTERN_CHARS} characters"
        self.refuse(field, f"must be a list of {shape}, is {show(value)}")
        return ()


def _words(whole: bool, most: float) -> str:
    return f"a {'whole ' if whole else ''}number above 0 and at most {most:g}"


def _positive(value: object, whole: bool, most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return 0 < value <= most  # false for NaN, too
