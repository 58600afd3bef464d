"""What the multipliers of this machine reach: matrix products whose operands stay in the caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from router.engine.native import load_ops

SIZES = ((256, 512, 512), (512, 1024, 1024), (1024, 1024, 1024))  # rows, inputs, outputs
SECONDS = 0.4  # for each size


@dataclass(frozen=True, slots=True)
class Peak:
    """The fastest product found. `rate`: multiplications and additions a second."""

    rate: float
    unit: str  # what multiplies, such as "avx512-bf16"
    by: str  # whose product it was
    size: tuple[int, int, int]


def peak(dtype: torch.dtype) -> Peak:
    """The fastest product of this size by torch (oneDNN) or by native operations, with all threads."""
    ops, kernels = load_ops(True, "cpu", dtype)
    unit = kernels.partition("(")[2].rstrip(")") if ops.name == "native" else "torch"
    found = []
    for rows, inputs, outputs in SIZES:
        x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        linear, turned = ops.pack_linear(w, None), w.t()
        products: dict[str, Callable[[], torch.Tensor]] = {
            "this engine": lambda x=x, linear=linear: linear(x),  # type: ignore[misc]
            "torch": lambda x=x, turned=turned: x @ turned,  # type: ignore[misc]
        }
        operations = 2 * rows * inputs * outputs
        found += [
            Peak(operations / _least(product), unit, name, (rows, inputs, outputs))
            for name, product in products.items()
        ]
    return max(found, key=lambda one: one.rate)


def _least(product: Callable[[], torch.Tensor]) -> float:
    """Seconds of the fastest of many."""
    product()
    times = []
    limit = time.perf_counter() + SECONDS
    while time.perf_counter() < limit:
        begin = time.perf_counter()
        product()
        times.append(time.perf_counter() - begin)
    return min(times)
