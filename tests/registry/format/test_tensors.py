"""Values are judged on their bits, in each precision."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.base import TensorData
from router.registry.format import tensors
from router.registry.format.examine import validate_folder
from router.registry.format.tensors import is_finite, is_zero
from tests.registry.tiny import BASE, lora_tensors, safetensors, write_adapter

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECIAL = {  # largest finite, smallest above zero, minus zero, infinity, minus infinity, two NaNs
    "F32": (0x7F7FFFFF, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF),
    "F16": (0x7BFF, 1, 0x8000, 0x7C00, 0xFC00, 0x7C01, 0xFFFF),
    "BF16": (0x7F7F, 1, 0x8000, 0x7F80, 0xFF80, 0x7F81, 0xFFFF),
}


def tensor(dtype: str, *bits: int) -> TensorData:
    code = "I" if dtype == "F32" else "H"
    return TensorData(dtype, (len(bits),), memoryview(struct.pack(f"<{len(bits)}{code}", *bits)))


@pytest.mark.parametrize("dtype", SPECIAL)
def test_special_values(dtype: str) -> None:
    largest, smallest, minus_zero, *not_finite = SPECIAL[dtype]
    assert is_finite(tensor(dtype, largest, smallest, minus_zero, 0))
    assert is_zero(tensor(dtype, 0, minus_zero))
    assert not is_zero(tensor(dtype, 0, smallest))
    assert [is_finite(tensor(dtype, 0, bits)) for bits in not_finite] == [False] * 4


@given(st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 0xFFFF), min_size=2, max_size=9))
def test_every_value_is_judged_as_torch_judges_it(dtype: str, bits: list[int]) -> None:
    data = tensor(dtype, *(b * 65_537 if dtype == "F32" else b for b in bits))
    seen = torch.frombuffer(bytearray(data.data), dtype=TORCH[dtype])
    assert is_finite(data) == bool(torch.isfinite(seen).all())
    assert is_zero(data) == bool((seen == 0).all())


def test_the_last_of_several_chunks_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "CHUNK", 3)
    assert not is_finite(tensor("F16", *[0] * 6, 0x7C00))
    assert not is_zero(tensor("F16", *[0] * 6, 1))


@pytest.mark.parametrize(
    ("zeroed", "codes"), [("lora_B", ["no-effect"]), ("lora_A", ["no-effect"]), ("0.mlp", [])]
)
def test_only_an_adapter_that_changes_nothing_anywhere_is_refused(
    zeroed: str, codes: list[str], tmp_path: Path
) -> None:
    values = {name: t * np.float32(-0.0) if zeroed in name else t for name, t in lora_tensors().items()}
    folder = write_adapter(tmp_path / "a", weights=safetensors(values))
    assert [f.code for f in validate_folder(folder, BASE).findings] == codes
