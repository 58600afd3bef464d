"""Checks of the numbers in tensors, on their raw bits: no framework, no conversion, bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from router.engine.base import TensorData
from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.safetensors_header import WEIGHTS, TensorEntry
from router.registry.format.sites import LoraPair
from router.registry.format.text import some

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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


def check_values(pairs: Mapping[str, LoraPair], file: memoryview, found: Findings) -> None:
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
