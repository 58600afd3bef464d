"""The header of a weights file: valid ones are read as safetensors reads them, all others are refused."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from safetensors.numpy import save as save_safetensors

from router.registry.findings import Findings
from router.registry.safetensors_header import LENGTH_BYTES, Header, header_length, parse_header
from tests.registry.tiny import header_of, lora_tensors, pack, safetensors


def check(file: bytes, size: int | None = None) -> tuple[Header | None, list[str]]:
    found = Findings()
    size = len(file) if size is None else size
    length = header_length(file[:LENGTH_BYTES], size, found)
    header = None if length is None else parse_header(file[: LENGTH_BYTES + length], size, found)
    assert (header is None) == found.refused
    return header, [f.code for f in found]


def test_a_file_written_by_safetensors_is_read_as_it_reads_it() -> None:
    tensors = lora_tensors()
    tensors["half"] = np.ones((2, 3), np.float16)
    file = save_safetensors(tensors, metadata={"format": "pt"})
    header, codes = check(file)
    assert codes == []
    assert header is not None
    assert header.tensors.keys() == tensors.keys()
    for name, value in load(file).items():
        entry = header.tensors[name]
        assert entry.shape == value.shape
        assert file[entry.start : entry.end] == value.tobytes()


def test_first_bytes_are_no_magic_while_the_length_is_believable() -> None:
    data = b"".join(value.tobytes() for value in lora_tensors().values())
    text = json.dumps(header_of(lora_tensors())).encode()
    for padding in range(256):  # 0x80 begins a pickle, too
        assert check(pack(text + b" " * padding, data))[1] == []


ONE = {"t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def changed(**fields: Any) -> dict[str, Any]:
    return {"t": {**ONE["t"], **fields}}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "weights-truncated"),
    "seven bytes": (b"\0" * 7, "weights-truncated"),
    "zero header": (pack(b"", b"\0" * 16), "header-invalid"),
    "header longer than the file": (pack(ONE)[:40], "weights-truncated"),
    "header over the limit": ((1 << 24).to_bytes(8, "little") + b"{}" * 99, "header-too-large"),
    "largest header": (b"\xff" * 8 + b"{}" * 99, "header-too-large"),
    "zip": (b"PK\x03\x04" + b"\0" * 99, "header-too-large"),
    "not UTF-8": (pack(b"\xff\xfe{}"), "header-invalid"),
    "not JSON": (pack(b"{'t': 1}"), "header-invalid"),
    "a list": (pack([]), "header-invalid"),
    "deep": (pack(b"[" * 99_999), "header-invalid"),
    "NaN": (pack(b'{"t": NaN}'), "header-invalid"),
    "BOM": (pack(b"\xef\xbb\xbf{}"), "header-invalid"),
    "duplicate tensor": (pack(b'{"t": 1, "t": 2}'), "header-invalid"),
    "duplicate field": (pack(b'{"t": {"dtype": "F32", "dtype": "F16"}}'), "header-invalid"),
    "no tensors": (pack({}), "header-invalid"),
    "metadata only": (pack({"__metadata__": {}}), "header-invalid"),
    "metadata of numbers": (pack({"__metadata__": {"a": 1}, **ONE}, b"\0" * 16), "header-invalid"),
    "metadata null": (pack({"__metadata__": None, **ONE}, b"\0" * 16), "header-invalid"),
    "entry is a list": (pack({"t": [1]}), "header-invalid"),
    "entry with more": (pack(changed(extra=1), b"\0" * 16), "header-invalid"),
    "integers": (pack(changed(dtype="I64", data_offsets=[0, 32]), b"\0" * 32), "dtype-unsupported"),
    "float8": (pack(changed(dtype="F8_E4M3", data_offsets=[0, 4]), b"\0" * 4), "dtype-unsupported"),
    "dtype list": (pack(changed(dtype=["F32"]), b"\0" * 16), "dtype-unsupported"),
    "shape zero": (pack(changed(shape=[0, 1 << 60], data_offsets=[0, 0])), "shape-invalid"),
    "shape negative": (pack(changed(shape=[-2, -2]), b"\0" * 16), "shape-invalid"),
    "shape empty": (pack(changed(shape=[], data_offsets=[0, 4]), b"\0" * 4), "shape-invalid"),
    "shape true": (pack(changed(shape=[True, 4]), b"\0" * 16), "shape-invalid"),
    "shape float": (pack(changed(shape=[2.0, 2]), b"\0" * 16), "shape-invalid"),
    "shape huge": (pack(changed(shape=[1 << 70, 2]), b"\0" * 16), "shape-invalid"),
    "shape long": (pack(changed(shape=[1] * 9, data_offsets=[0, 4]), b"\0" * 4), "shape-invalid"),
    "shape overflow": (pack(changed(shape=[1 << 62, 1 << 62]), b"\0" * 16), "offsets-invalid"),
    "offsets swapped": (pack(changed(data_offsets=[16, 0]), b"\0" * 16), "offsets-invalid"),
    "offsets negative": (pack(changed(data_offsets=[-16, 0]), b"\0" * 16), "offsets-invalid"),
    "offsets short": (pack(changed(data_offsets=[0]), b"\0" * 16), "offsets-invalid"),
    "offsets too wide": (pack(changed(data_offsets=[0, 20]), b"\0" * 20), "offsets-invalid"),
    "starts late": (pack(changed(data_offsets=[4, 20]), b"\0" * 20), "offsets-invalid"),
    "overlap": (pack({**ONE, "u": ONE["t"]}, b"\0" * 16), "offsets-invalid"),
    "gap": (pack({**ONE, "u": {**ONE["t"], "data_offsets": [20, 36]}}, b"\0" * 36), "offsets-invalid"),
    "truncated": (pack(ONE, b"\0" * 15), "weights-truncated"),
    "trailing": (pack(ONE, b"\0" * 17), "weights-trailing-bytes"),
}


@pytest.mark.parametrize(("file", "code"), BAD.values(), ids=BAD)
def test_bad_headers_are_refused(file: bytes, code: str) -> None:
    header, codes = check(file)
    assert header is None
    assert codes == [code if file[:2] != b"PK" else "header-invalid"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), json_values)
def test_any_value_anywhere_is_refused_or_harmless(field: str, value: Any) -> None:
    header = copy.deepcopy(ONE)
    header["t"][field] = value
    parsed, _ = check(pack(header, b"\0" * 16))
    assert parsed is None or [t.end - t.start for t in parsed.tensors.values()] == [16]


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert check(data)[0] is None


@given(st.integers(0, 3_000), st.integers(1, 255))
def test_one_changed_byte_never_gives_spans_outside_the_file(at: int, flip: int) -> None:
    file = bytearray(safetensors(lora_tensors()))
    file[at % len(file)] ^= flip
    header, _ = check(bytes(file))
    if header is not None:
        spans = sorted((t.start, t.end) for t in header.tensors.values())
        assert spans[0][0] == len(header.raw)
        assert spans[-1][1] == len(file)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
