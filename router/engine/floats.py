"""Weights as checkpoints store them, without torch: bfloat16 is the upper half of a float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}  # bytes, by safetensors' names
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_QUIET_NAN = 0x7FC0


def float32_of(dtype: str, data: bytes | memoryview) -> NDArray[np.float32]:
    """The values that are stored there, flat."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def stored_as(dtype: str, values: NDArray[np.float32]) -> bytes:
    """The values rounded to the nearest that `dtype` has, ties to even, as torch rounds."""
    if dtype == "F32":
        return np.ascontiguousarray(values, np.float32).tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = _QUIET_NAN
    return rounded.tobytes()
