"""`adapter_model.safetensors`: its header, which modules of the base its tensors are for, and their numbers.

The header is checked before a byte of data is read, and here, because the library accepts what can hurt a
server: a sparse tensor of 1 TB, a shape of [0, 2^60], duplicate names, a header of 84 MB (measured with
safetensors 0.8). Format: 8 bytes little-endian header length N, N bytes of JSON, data; `data_offsets` count
from the end of the header.

Tensor names are compared for equality, never by substring. Where trainers left wrappers in the names, the
ways they are known to do it are undone, and only if every tensor then matches exactly one site. Otherwise
PEFT's own behaviour (an unchanged base and a warning) would be repeated here without the warning. Numbers are
looked at as raw bits: no framework, no conversion, bounded memory.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from router.engine.base import TensorData
from router.registry.format.folder import WEIGHTS
from router.registry.format.untrusted import (
    HEADER_BYTES,
    MAX_DIMS,
    MAX_TENSORS,
    Code,
    FolderFindings,
    JsonError,
    load_json,
    show,
    some,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2}
LENGTH_BYTES = 8
_MAGIC = (
    (b"PK\x03\x04", "a PyTorch zip file (pickle)"),
    (b"\x80", "a pickle"),
    (b"GGUF", "a GGUF file"),
    (b"version ", "a Git LFS pointer, not the file itself"),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: where its bytes are, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(prefix: bytes, file_size: int, found: FolderFindings) -> int | None:
    """Length of the JSON from the first 8 bytes, if it is believable."""
    if len(prefix) < LENGTH_BYTES or file_size < LENGTH_BYTES + 2:
        found.refuse(Code.WEIGHTS_TRUNCATED, f"has {file_size} bytes, no header fits in it", WEIGHTS)
        return None
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES:
        _refuse_length(prefix, length, found)
        return None
    if LENGTH_BYTES + length > file_size:
        message = f"has {file_size} bytes, its header alone needs {LENGTH_BYTES + length}"
        found.refuse(Code.WEIGHTS_TRUNCATED, message, WEIGHTS)
        return None
    return length


def _refuse_length(prefix: bytes, length: int, found: FolderFindings) -> None:
    for magic, kind in _MAGIC:  # all of these make lengths above the limit
        if prefix.startswith(magic):
            found.refuse(Code.HEADER_INVALID, f"is {kind}, not safetensors", WEIGHTS)
            return
    message = f"header of {length} bytes, at most {HEADER_BYTES} are allowed"
    found.refuse(Code.HEADER_TOO_LARGE, message, WEIGHTS)


def parse_header(
    raw: bytes, file_size: int, found: FolderFindings, most: int = MAX_TENSORS
) -> Mapping[str, TensorEntry] | None:
    """The tensors by name that `raw` (length and JSON) lists; None if anything does not fit the file's size.

    `most` is the number of tensors that any adapter could have here.
    """
    try:
        document = load_json(raw[LENGTH_BYTES:])
        if not isinstance(document, dict):
            raise JsonError("must be a JSON object")
    except JsonError as error:
        found.refuse(Code.HEADER_INVALID, f"header: {error}", WEIGHTS)
        return None
    if not _metadata_is_plain(document.pop("__metadata__", {})):
        found.refuse(Code.HEADER_INVALID, "__metadata__ must map strings to strings", WEIGHTS)
        return None
    if not 1 <= len(document) <= most:
        message = f"holds {len(document) or 'no'} tensors, an adapter has 2 for each module, at most {most}"
        found.refuse(Code.HEADER_INVALID, message, WEIGHTS)
        return None
    tensors: dict[str, TensorEntry] = {}
    for name, value in document.items():
        problem = _entry(name, value, len(raw), tensors)
        if problem is not None:
            found.refuse(problem[0], problem[1], f"{WEIGHTS} {show(name, 160)}")
            return None
    return tensors if _spans_fit(tensors, len(raw), file_size, found) else None


def _metadata_is_plain(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _entry(name: str, value: Any, origin: int, tensors: dict[str, TensorEntry]) -> tuple[Code, str] | None:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return Code.HEADER_INVALID, "must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        return Code.DTYPE_UNSUPPORTED, f"dtype {show(dtype)}; supported: {', '.join(ITEM_SIZE)}"
    if not _whole_numbers(shape, low=1) or not 1 <= len(shape) <= MAX_DIMS:
        message = f"shape must be 1 to {MAX_DIMS} whole numbers above 0, is {_numbers(shape)}"
        return Code.SHAPE_INVALID, message
    if not _whole_numbers(offsets, low=0) or len(offsets) != 2:
        return Code.OFFSETS_INVALID, f"data_offsets must be two whole numbers, are {_numbers(offsets)}"
    start, end = offsets
    needed = math.prod(shape) * ITEM_SIZE[dtype]
    if end - start != needed:
        message = (
            f"{_numbers(shape)} of {dtype} needs {show(needed)} bytes, data_offsets give {show(end - start)}"
        )
        return Code.OFFSETS_INVALID, message
    tensors[name] = TensorEntry(name, dtype, tuple(shape), origin + start, origin + end)
    return None


def _whole_numbers(value: object, low: int) -> bool:
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and low <= n < 1 << 63 for n in value)


def _numbers(value: object) -> str:
    if isinstance(value, list) and len(value) <= MAX_DIMS:
        return f"[{', '.join(show(v) for v in value)}]"
    return show(value)


def _spans_fit(
    tensors: Mapping[str, TensorEntry], origin: int, file_size: int, found: FolderFindings
) -> bool:
    expected = origin
    for entry in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
        if entry.start != expected:
            kind = "overlaps the one before it" if entry.start < expected else "leaves a gap before it"
            found.refuse(Code.OFFSETS_INVALID, f"its data {kind}", f"{WEIGHTS} {show(entry.name, 160)}")
            return False
        expected = entry.end
    if file_size < expected:
        message = f"has {file_size} bytes, its tensors need {expected}: truncated, or not copied completely"
        found.refuse(Code.WEIGHTS_TRUNCATED, message, WEIGHTS)
    elif file_size > expected:
        message = f"{file_size - expected} bytes after the last tensor"
        found.refuse(Code.WEIGHTS_TRAILING, message, WEIGHTS)
    return file_size == expected


# -- tensor names


A, B, FULL, OTHER = "lora_A", "lora_B", "full weights", "unknown"
_ENDINGS = {
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_A.default.weight": A,
    ".lora_B.default.weight": B,
}
_EMBEDDING = "LoRAs of embeddings, which cannot have an adapter here; target linear modules only"
_MAGNITUDE = "DoRA magnitudes, which are not supported; train with use_dora=False"
_RETRAINED = "retrained tokens, which are not supported; train without trainable_token_indices"
_BIAS = "LoRA biases, which are not supported; train with lora_bias=False"
_UNSUPPORTED = {  # by a part of the name
    "lora_embedding_": _EMBEDDING,
    "lora_magnitude_vector": _MAGNITUDE,
    ".magnitude": _MAGNITUDE,
    "trainable_tokens_delta": _RETRAINED,
    "token_adapter.": _RETRAINED,
    ".lora_B.bias": _BIAS,
    ".lora_B.default.bias": _BIAS,
}
_NAME_WRAPPERS = (
    ".base_layer",
    ".modules_to_save.default",
    ".modules_to_save",
    ".original_module",
    ".token_adapter",
)


class TensorKey(NamedTuple):
    """A tensor's name taken apart: what it is, or what is unsupported about it, and its module with whatever
    prefixes the trainer left."""

    kind: str
    module: str


def read_key(name: str) -> TensorKey:
    """Take a tensor's name apart."""
    for ending, kind in _ENDINGS.items():
        if name.endswith(ending):
            return TensorKey(kind, name.removesuffix(ending))
    for mark, unsupported in _UNSUPPORTED.items():
        if mark in name:
            return TensorKey(unsupported, name)
    if "lora_" not in name and name.endswith((".weight", ".bias")):
        return TensorKey(FULL, _unwrapped(name.rpartition(".")[0]))
    return TensorKey(OTHER, name)


def _unwrapped(module: str) -> str:
    for wrapper in _NAME_WRAPPERS:
        module = module.removesuffix(wrapper)
    return module


# -- from tensor names to linear modules of the base

PREFIX = "base_model.model."
_MODULE_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module"})
_OUTER = "language_model"


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two tensors of one LoRA site."""

    a: TensorEntry
    b: TensorEntry


@dataclass(slots=True)
class SiteTensors:
    """Tensors by site, and whole matrices of the base that were saved along (by module)."""

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    full: dict[str, TensorEntry] = field(default_factory=dict)
    complete: bool = False  # every tensor found its site


def match_sites(
    tensors: Mapping[str, TensorEntry], sites: Collection[str] | None, found: FolderFindings
) -> SiteTensors:
    """Sort the tensors by site; what does not fit is refused. `sites` None: the base is not known yet."""
    keys = {name: read_key(name) for name in tensors}
    _refuse_unsupported(keys, found)
    lora = {name: key for name, key in keys.items() if key.kind in (A, B)}
    full = {_plain(k.module): tensors[name] for name, k in keys.items() if k.kind == FULL}
    odd = [name for name, key in keys.items() if key.kind == OTHER]
    modules = {name: _module_of(key.module, sites) for name, key in lora.items()}
    unmatched = odd + [name for name, module in modules.items() if module is None]
    if unmatched:
        _refuse_unmatched(unmatched, sites or (), found)
    matched = {name: module for name, module in modules.items() if module is not None}
    if not unmatched:
        _note_normalised(matched, lora, found)
    return SiteTensors(_pairs(matched, lora, tensors, found), full, complete=not unmatched)


def _module_of(module: str, sites: Collection[str] | None) -> str | None:
    """The one site that `module` names, with PEFT's prefix or after undoing wrappers."""
    usual = module.removeprefix(PREFIX)
    if sites is None:
        return _plain(module)
    if module.startswith(PREFIX) and usual in sites:
        return usual
    hits = {candidate for candidate in candidates(module) if candidate in sites}
    return hits.pop() if len(hits) == 1 else None


def _plain(module: str) -> str:
    """Without wrappers and prefixes."""
    bare = ".".join(part for part in module.split(".") if part not in _MODULE_WRAPPERS)
    while bare.startswith(PREFIX):
        bare = bare.removeprefix(PREFIX)
    return bare


def candidates(module: str) -> Iterable[str]:
    """Names that `module` may have in the base, wrappers and prefixes undone."""
    bare = _plain(module)
    inner = ".".join(part for part in bare.split(".") if part != _OUTER)
    for name in (bare, inner):
        yield name
        yield f"model.{name}"  # trained on the model without its head
        yield name.removeprefix("model.")


def _note_normalised(
    modules: Mapping[str, str], keys: Mapping[str, TensorKey], found: FolderFindings
) -> None:
    changed = [name for name, module in modules.items() if keys[name].module != PREFIX + module]
    if changed:
        first = changed[0]
        example = f"{show(keys[first].module, 160)} -> {show(modules[first], 160)}"
        found.note(
            Code.KEYS_NORMALISED, f"{len(changed)} tensor names were normalised, e.g. {example}", WEIGHTS
        )


def _pairs(
    modules: Mapping[str, str],
    keys: Mapping[str, TensorKey],
    tensors: Mapping[str, TensorEntry],
    found: FolderFindings,
) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, TensorEntry]] = {}
    for name, module in modules.items():
        pair, kind = sides.setdefault(module, {}), keys[name].kind
        if kind in pair:
            same = some([pair[kind].name, name])
            found.refuse(Code.KEYS_AMBIGUOUS, f"{same} are the same tensor", WEIGHTS)
        pair[kind] = tensors[name]
    lonely = [entry.name for pair in sides.values() if len(pair) == 1 for entry in pair.values()]
    if lonely:
        found.refuse(Code.KEYS_UNPAIRED, f"lora_A without lora_B or the reverse: {some(lonely)}", WEIGHTS)
    return {module: LoraPair(pair[A], pair[B]) for module, pair in sides.items() if len(pair) == 2}


def _refuse_unsupported(keys: Mapping[str, TensorKey], found: FolderFindings) -> None:
    for kind in dict.fromkeys(_UNSUPPORTED.values()):
        if names := [name for name, key in keys.items() if key.kind == kind]:
            found.refuse(Code.TENSOR_UNSUPPORTED, f"{len(names)} tensors are {kind}; {some(names)}", WEIGHTS)


def _refuse_unmatched(names: list[str], sites: Collection[str], found: FolderFindings) -> None:
    close = _nearest(names[0], sites)
    hint = f"; nearest modules of the base: {', '.join(close)}" if close else ""
    message = f"{len(names)} tensors match no module of the base: {some(names)}{hint}"
    found.refuse(Code.KEYS_UNMATCHED, message, WEIGHTS)


def _nearest(name: str, sites: Collection[str]) -> list[str]:
    module = _plain(read_key(name).module)[-100:]
    leaf = module.rpartition(".")[2]
    same_leaf = [s for s in sites if s.rpartition(".")[2] == leaf] or list(sites)
    return difflib.get_close_matches(module, same_leaf[:200], n=3, cutoff=0.3)


# -- the numbers

CHUNK = 1 << 20  # elements


class _Bits(NamedTuple):
    integer: str
    exponent: int  # all of these set: infinity or not a number
    magnitude: int  # none of these set: zero


_BITS = {
    "F32": _Bits("<u4", 0x7F800000, 0x7FFFFFFF),
    "F16": _Bits("<u2", 0x7C00, 0x7FFF),
    "BF16": _Bits("<u2", 0x7F80, 0x7FFF),
}


def tensor_data(entry: TensorEntry, file: memoryview) -> TensorData:
    """The tensor as a view into the file's bytes."""
    return TensorData(entry.dtype, entry.shape, file[entry.start : entry.end])


def is_finite(tensor: TensorData) -> bool:
    """Whether no element is infinite or NaN."""
    exponent = _BITS[tensor.dtype].exponent
    return not any(bool(((part & exponent) == exponent).any()) for part in _chunks(tensor))


def is_zero(tensor: TensorData) -> bool:
    """Whether every element is zero, of either sign."""
    magnitude = _BITS[tensor.dtype].magnitude
    return not any(bool((part & magnitude).any()) for part in _chunks(tensor))


def _chunks(tensor: TensorData) -> Iterable[npt.NDArray[np.unsignedinteger]]:
    import numpy as np

    values = np.frombuffer(tensor.data, dtype=_BITS[tensor.dtype].integer)
    return (values[at : at + CHUNK] for at in range(0, len(values), CHUNK))


def check_values(pairs: Mapping[str, LoraPair], file: memoryview, found: FolderFindings) -> None:
    """Refuse values that are not finite, and an adapter that changes nothing."""
    entries = [entry for pair in pairs.values() for entry in (pair.a, pair.b)]
    wrong = [entry.name for entry in entries if not is_finite(tensor_data(entry, file))]
    if wrong:
        found.refuse(Code.NOT_FINITE, f"NaN or infinite values in {some(wrong)}", WEIGHTS)
    if pairs and all(_no_effect(pair, file) for pair in pairs.values()):
        message = "changes nothing: lora_B (or lora_A) is zero at every site; it was saved before training"
        found.refuse(Code.NO_EFFECT, message, WEIGHTS)


def _no_effect(pair: LoraPair, file: memoryview) -> bool:
    return is_zero(tensor_data(pair.b, file)) or is_zero(tensor_data(pair.a, file))
