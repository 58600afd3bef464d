from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from router.engine.loader import base_digest, pick_device, pick_dtype, use_device
from router.errors import ConfigError


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


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """`cards(n, native)`: as if there were n CUDA devices; returns those that threads were given to."""

    def found(count: int, native: bool = True) -> list[object]:
        used: list[object] = []

        def multiplies(including_emulation: bool = True) -> bool:
            return native or including_emulation

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", multiplies)
        monkeypatch.setattr(torch.cuda, "set_device", used.append)
        return used

    return found


@pytest.mark.parametrize(
    ("wanted", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cpu", 2, "cpu"),
    ],
)
def test_a_cuda_device_has_its_number(cards, wanted: str, count: int, device: str) -> None:
    cards(count)
    assert str(pick_device(wanted)) == device


@pytest.mark.parametrize(
    ("wanted", "count", "said"),
    [
        ("cuda", 0, "sees no CUDA device"),
        ("cuda:2", 2, r"cuda:2 was asked for, but this torch sees 2 CUDA device\(s\), from 0 on"),
        ("gpu", 1, "device 'gpu' is not known to torch"),
    ],
)
def test_a_device_that_is_not_there_is_refused(cards, wanted: str, count: int, said: str) -> None:
    cards(count)
    with pytest.raises(ConfigError, match=said):
        pick_device(wanted)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bfloat16_serves_in_float16(
    cards, native: bool, dtype: torch.dtype
) -> None:
    cards(1, native)
    assert pick_dtype("auto", torch.device("cuda", 0)) == dtype


def test_a_thread_is_given_to_a_cuda_device_only(cards) -> None:
    used = cards(2)
    use_device(torch.device("cpu"))
    use_device(torch.device("cuda", 1))
    assert used == [torch.device("cuda", 1)]
