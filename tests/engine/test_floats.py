"""bfloat16 without torch: rounded as torch rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from router.engine.floats import NAMES, float32_of, stored_as

VALUES = np.array(
    [0, -0.0, 1, 1.00390625, 1.01171875, 3.4e38, -1e-40, 65505, 1e-8, np.inf, -np.inf, np.nan], np.float32
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_as_torch_has_it(dtype: str) -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([VALUES, rng.standard_normal(1000).astype(np.float32)])
    torchs = torch.from_numpy(values).to(getattr(torch, dtype))
    stored = stored_as(NAMES[dtype], values)
    assert np.array_equal(float32_of(NAMES[dtype], stored), torchs.float().numpy(), equal_nan=True)
