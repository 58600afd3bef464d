"""Weights in 8 bits: what rounding costs, and what it does with odd weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine import int8
from router.engine.int8 import LARGEST, quantise


def restored(weight: int8.Int8Weight) -> torch.Tensor:
    return weight.values.double() * weight.scales.double()[:, None]


@given(
    out=st.integers(1, 40),
    width=st.integers(1, 70),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_no_weight_is_off_by_more_than_half_a_scale(out, width, exponent, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, 3, out)[:, None]  # outputs of unlike size: each has its own scale
    weight = (torch.randn(out, width, generator=generator) * spread * 2.0**exponent).to(dtype)
    small = quantise(weight)
    assert (small.values.dtype, small.scales.dtype) == (torch.int8, torch.float32)
    assert (small.values.abs().amax(1) == LARGEST).all()
    off = (restored(small) - weight.double()).abs()
    assert (off <= small.scales.double()[:, None] * 0.5001).all()


def test_whole_numbers_with_a_largest_of_127_come_back_exactly():
    weight = torch.arange(-LARGEST, LARGEST + 1).float()[None] * torch.tensor([[1.0], [0.25]])
    assert torch.equal(restored(quantise(weight)).float(), weight)


def test_many_outputs_are_rounded_in_parts(monkeypatch):
    weight = torch.randn(37, 50)
    whole = quantise(weight)
    monkeypatch.setattr(int8, "_AT_ONCE", 200)
    parts = quantise(weight)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.scales, whole.scales)


def test_an_output_of_zeros_stays_zero():
    small = quantise(torch.zeros(2, 8))
    assert not small.values.any()
    assert not small.scales.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_own_output_alone(bad):
    weight = torch.randn(3, 8)
    weight[1, 5] = bad
    product = restored(quantise(weight)) @ torch.rand(8).double()
    assert torch.isfinite(product).tolist() == [True, False, True]
