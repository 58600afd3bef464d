"""rank_pattern and alpha_pattern without a regular expression engine.

PEFT matches `re.match(rf"(.*\\.)?({key})$", module)` and takes the first key that fits. Keys come from a
file, so nothing is compiled here; the literal forms that people write are read, others are refused by name:

    q_proj                 a dotted suffix            ^model.layers.0.mlp.up_proj   the whole name
    layers.0.mlp.up_proj   a dotted suffix            .*_proj                       any ending

An escaped dot is a dot, a closing `$` changes nothing. A plain dot is taken as a dot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

LOOSE = 64  # patterns that must be tried one by one
META = frozenset("\\^$*+?{}[]|()")


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
