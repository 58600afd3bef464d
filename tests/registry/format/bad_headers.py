"""Weights files with a header that lies, and the code of the refusal each must get."""

from __future__ import annotations

from typing import Any

from tests.registry.tiny import pack

ONE = {"t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def changed(**fields: Any) -> dict[str, Any]:
    """The header of one 2x2 tensor with some fields replaced."""
    return {"t": {**ONE["t"], **fields}}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "weights-truncated"),
    "seven bytes": (b"\0" * 7, "weights-truncated"),
    "zero header": (pack(b"", b"\0" * 16), "header-invalid"),
    "header longer than the file": (pack(ONE)[:40], "weights-truncated"),
    "header over the limit": ((1 << 24).to_bytes(8, "little") + b"{}" * 99, "header-too-large"),
    "largest header": (b"\xff" * 8 + b"{}" * 99, "header-too-large"),
    "zip": (b"PK\x03\x04" + b"\0" * 99, "header-invalid"),
    "pickle": (b"\x80\x04\x95" + b"\x10" * 99, "header-invalid"),
    "GGUF": (b"GGUF" + b"\x03\0\0\0" * 9, "header-invalid"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "header-invalid"),
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
