from __future__ import annotations

import pytest
import torch
from torch import nn

from router.engine.model.loader import base_digest


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_same_weights_same_digest() -> None:
    assert base_digest(Tied()) == base_digest(Tied())
    assert len(base_digest(Tied())) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_loading_does_not_matter(dtype: torch.dtype) -> None:
    stored = Tied().to(torch.bfloat16)
    assert base_digest(stored.to(dtype)) == base_digest(Tied().to(torch.bfloat16))


def test_one_changed_value_changes_it() -> None:
    model = Tied()
    before = base_digest(model)
    with torch.no_grad():
        model.embed.weight[3, 2] += 1.0
    assert base_digest(model) != before


def test_shape_counts() -> None:
    wide, tall = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        wide.weight.zero_()
        tall.weight.zero_()
    assert base_digest(wide) != base_digest(tall)
