"""The header of a safetensors file, checked before a byte of data is read.

Written because the library accepts what can hurt a server: a sparse tensor of 1 TB, a shape of [0, 2^60],
duplicate names, a header of 84 MB (measured with safetensors 0.8). Format: 8 bytes little-endian header
length N, N bytes of JSON, data; `data_offsets` count from the end of the header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.registry.format import limits
from router.registry.format.findings import Code, Findings
from router.registry.format.folder import WEIGHTS
from router.registry.format.parsing import JsonError, load_json
from router.registry.format.text import show

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


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose every statement fits the file's size. `raw` is length and JSON as read."""

    tensors: Mapping[str, TensorEntry]
    raw: bytes


def header_length(prefix: bytes, file_size: int, found: Findings) -> int | None:
    """Length of the JSON from the first 8 bytes, if it is believable."""
    if len(prefix) < LENGTH_BYTES or file_size < LENGTH_BYTES + 2:
        found.refuse(Code.WEIGHTS_TRUNCATED, f"has {file_size} bytes, no header fits in it", WEIGHTS)
        return None
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > limits.HEADER_BYTES:
        _refuse_length(prefix, length, found)
        return None
    if LENGTH_BYTES + length > file_size:
        message = f"has {file_size} bytes, its header alone needs {LENGTH_BYTES + length}"
        found.refuse(Code.WEIGHTS_TRUNCATED, message, WEIGHTS)
        return None
    return length


def _refuse_length(prefix: bytes, length: int, found: Findings) -> None:
    for magic, kind in _MAGIC:  # all of these make lengths above the limit
        if prefix.startswith(magic):
            found.refuse(Code.HEADER_INVALID, f"is {kind}, not safetensors", WEIGHTS)
            return
    message = f"header of {length} bytes, at most {limits.HEADER_BYTES} are allowed"
    found.refuse(Code.HEADER_TOO_LARGE, message, WEIGHTS)


def parse_header(raw: bytes, file_size: int, found: Findings, most: int = limits.TENSORS) -> Header | None:
    """Check `raw` (length and JSON) against the file's size; None if anything does not fit.

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
    return Header(tensors, raw) if _spans_fit(tensors, len(raw), file_size, found) else None


def _metadata_is_plain(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _entry(name: str, value: Any, origin: int, tensors: dict[str, TensorEntry]) -> tuple[Code, str] | None:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return Code.HEADER_INVALID, "must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        return Code.DTYPE_UNSUPPORTED, f"dtype {show(dtype)}; supported: {', '.join(ITEM_SIZE)}"
    if not _whole_numbers(shape, low=1) or not 1 <= len(shape) <= limits.TENSOR_DIMS:
        message = f"shape must be 1 to {limits.TENSOR_DIMS} whole numbers above 0, is {_plain(shape)}"
        return Code.SHAPE_INVALID, message
    if not _whole_numbers(offsets, low=0) or len(offsets) != 2:
        return Code.OFFSETS_INVALID, f"data_offsets must be two whole numbers, are {_plain(offsets)}"
    start, end = offsets
    needed = math.prod(shape) * ITEM_SIZE[dtype]
    if end - start != needed:
        message = (
            f"{_plain(shape)} of {dtype} needs {show(needed)} bytes, data_offsets give {show(end - start)}"
        )
        return Code.OFFSETS_INVALID, message
    tensors[name] = TensorEntry(name, dtype, tuple(shape), origin + start, origin + end)
    return None


def _whole_numbers(value: object, low: int) -> bool:
    if not isinstance(value, list) or len(value) > limits.TENSOR_DIMS:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and low <= n < 1 << 63 for n in value)


def _plain(value: object) -> str:
    if isinstance(value, list) and len(value) <= limits.TENSOR_DIMS:
        return f"[{', '.join(show(v) for v in value)}]"
    return show(value)


def _spans_fit(tensors: Mapping[str, TensorEntry], origin: int, file_size: int, found: Findings) -> bool:
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
