"""A GGUF file (llama.cpp, `docs/gguf.md` of ggml): its facts, its tensors and where they lie.

The file is not trusted: every count, length and place is compared with the file's size before anything is
made of it, and what does not fit raises ConfigError.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from router.engine.blocks import FORMS
from router.errors import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PLAIN = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}  # numbers of types that are no blocks, bytes of each
KIND_NAMES = {number: name for number, (name, _) in PLAIN.items()} | {
    n: form.name for n, form in FORMS.items()
}
MOST_FACTS = 4096
MOST_TENSORS = 1 << 16
MOST_DIMENSIONS = 4
LONGEST_NAME = 1 << 10  # bytes of a key or a tensor's name
LONGEST_TEXT = 1 << 24
MOST_ENTRIES = 1 << 21  # of an array, such as the vocabulary
_DEFAULT_ALIGNMENT = 32
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A weight: `shape` with the outputs first; its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int  # GGUF's number of its type
    start: int
    size: int

    @property
    def kind_name(self) -> str:
        """Its type as GGUF calls it."""
        return KIND_NAMES.get(self.kind, f"number {self.kind}")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What the header says."""

    path: Path
    facts: dict[str, Any]  # metadata by key; arrays as lists
    tensors: dict[str, GgufTensor]

    def fact(self, key: str, kind: type, default: Any = None) -> Any:
        """A fact of that type. Raises ConfigError where it has another, or is missing without a default."""
        value = self.facts.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = f"is {type(value).__name__}" if key in self.facts else "is missing"
            raise ConfigError(f"{self.path.name}: {key} {what}, and has to be {kind.__name__}")
        return value


def read_gguf(path: Path) -> GgufFile:
    """The header of a file, checked. Raises ConfigError with what is wrong."""
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return _Reader(path, memory).file()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error


class _Reader:
    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path, self._memory, self._at, self._size = path, memory, 0, len(memory)

    def file(self) -> GgufFile:
        if self._take(4) != MAGIC:
            raise self._wrong("does not begin with GGUF")
        version: int = self._number("<I")
        if version not in VERSIONS:
            raise self._wrong(f"has version {version}, and only 2 and 3 are read (little-endian)")
        tensors = self._count("<Q", MOST_TENSORS, "tensors", 24)
        count = self._count("<Q", MOST_FACTS, "facts", 13)
        facts: dict[str, Any] = {}
        for _ in range(count):
            key = self._text(LONGEST_NAME)
            if key in facts:
                raise self._wrong(f"has the fact {key!r} twice")
            facts[key] = self._value(self._number("<I"))
        infos = [self._info() for _ in range(tensors)]
        return GgufFile(self._path, facts, self._placed(infos, facts))

    def _placed(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], facts: dict[str, Any]
    ) -> dict[str, GgufTensor]:
        alignment = facts.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self._wrong(f"has an alignment of {alignment!r}, and it has to be a power of two")
        begin = -(-self._at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            size = self._bytes_of(name, shape, kind)
            if offset % alignment or begin + offset + size > self._size:
                raise self._wrong(f"is shorter than its header says: tensor {name!r} is not whole")
            if name in found:
                raise self._wrong(f"has the tensor {name!r} twice")
            found[name] = GgufTensor(name, shape, kind, begin + offset, size)
        return found

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(LONGEST_NAME)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._wrong(f"gives tensor {name!r} {dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        if not all(0 < size <= 1 << 32 for size in shape):
            raise self._wrong(f"gives tensor {name!r} the shape {list(shape)}")
        return name, shape, self._number("<I"), self._number("<Q")

    def _bytes_of(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        if kind in PLAIN:
            return prod(shape) * PLAIN[kind][1]
        form = FORMS.get(kind)
        if form is None:
            known = ", ".join(sorted(KIND_NAMES.values()))
            raise self._wrong(
                f"stores {name!r} as type {kind}, and only {known} are read: make it with another type, such "
                "as Q4_K_M or Q8_0"
            )
        if shape[-1] % form.inputs:
            raise self._wrong(f"gives {name!r} {shape[-1]} inputs, no multiple of {form.inputs}")
        return prod(shape) // form.inputs * form.size

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(LONGEST_TEXT)
        if kind != _ARRAY:
            raise self._wrong(f"has a fact of type {kind}, and there is no such type")
        of: int = self._number("<I")
        if of in _SCALARS:
            width = struct.calcsize(_SCALARS[of])
            count = self._count("<Q", MOST_ENTRIES, "entries", width)
            return list(struct.unpack(f"<{count}{_SCALARS[of][1]}", self._take(count * width)))
        if of != _STRING:
            raise self._wrong(f"has an array of type {of}, which is not read")
        return [self._text(LONGEST_TEXT) for _ in range(self._count("<Q", MOST_ENTRIES, "entries", 8))]

    def _text(self, longest: int) -> str:
        length = self._count("<Q", longest, "bytes of text", 1)
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._wrong("has a text that is not UTF-8") from None

    def _count(self, form: str, most: int, what: str, each: int) -> int:
        """A number of things that take `each` bytes or more."""
        count: int = self._number(form)
        if count > most or count * each > self._size - self._at:
            raise self._wrong(f"claims to have {count} {what}")
        return count

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _take(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise self._wrong("ends inside its header")
        self._at += count
        return self._memory[self._at - count : self._at]

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path.name} is no GGUF file that can be served: it {what}")
