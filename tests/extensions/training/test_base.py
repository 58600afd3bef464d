"""What a machine trains in."""

from __future__ import annotations

import platform

import pytest
import torch

from router.extensions.training import base


@pytest.mark.parametrize(
    ("told", "machine", "dtype"),
    [
        ({"vendor_id": "GenuineIntel", "flags": "avx512f avx512_bf16"}, "x86_64", torch.float32),
        ({"vendor_id": "GenuineIntel", "flags": "avx512_bf16 amx_bf16"}, "x86_64", torch.bfloat16),
        ({"vendor_id": "AuthenticAMD", "flags": "avx2 avx512_bf16"}, "x86_64", torch.bfloat16),
        ({"vendor_id": "AuthenticAMD", "flags": "avx2"}, "x86_64", torch.float32),
        ({}, "aarch64", torch.bfloat16),
    ],
)
def test_float32_is_for_processors_that_are_slow_at_bfloat16(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], machine: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(base, "_cpu", lambda field: told.get(field, ""))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert base.faster_dtype(torch.nn.Linear(2, 2), torch.device("cpu")) is dtype
    assert base.faster_dtype(torch.nn.Linear(2, 2), torch.device("meta")) is torch.bfloat16


def test_float32_is_not_taken_where_it_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_cpu", lambda field: "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    huge = torch.nn.Linear(1 << 20, 1 << 20, bias=False, device="meta")
    assert base.faster_dtype(huge, torch.device("cpu")) is torch.bfloat16


def test_buffers_stay_what_they_are() -> None:
    model = torch.nn.BatchNorm1d(2)
    base.cast_weights(model, torch.bfloat16)
    assert (model.weight.dtype, model.running_mean.dtype) == (torch.bfloat16, torch.float32)
