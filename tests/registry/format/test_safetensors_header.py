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

from router.registry.format.findings import Findings
from router.registry.format.safetensors_header import LENGTH_BYTES, Header, header_length, parse_header
from tests.registry.format.bad_headers import BAD, ONE
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


@pytest.mark.parametrize(("file", "code"), BAD.values(), ids=BAD)
def test_bad_headers_are_refused(file: bytes, code: str) -> None:
    header, codes = check(file)
    assert header is None
    assert codes == [code]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
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
