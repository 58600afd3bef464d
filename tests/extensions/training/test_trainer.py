from __future__ import annotations

import pytest
import torch

from router.errors import FailedPrecondition
from router.extensions.training.recipe import Training
from router.extensions.training.trainer import MasterAdamW, rate_factor


def test_cosine_warms_up_peaks_and_falls() -> None:
    plan = Training(steps=100, warmup=0.1)
    factors = [rate_factor(step, plan) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[54] == pytest.approx(0.5)
    assert factors[-1] == 0.02
    assert factors[9:] == sorted(factors[9:], reverse=True)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("constant", 1.0)])
def test_other_schedules(schedule: str, middle: float) -> None:
    plan = Training(steps=10, warmup=0.0, schedule=schedule)
    assert rate_factor(5, plan) == pytest.approx(middle)


def test_updates_too_small_for_bfloat16_add_up() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    plan = Training(steps=1000, learning_rate=1e-3, schedule="constant", warmup=0.0, weight_decay=0.0)
    optimizer = MasterAdamW([weight], plan)
    for step in range(1, 21):
        weight.grad = torch.ones_like(weight)
        optimizer.step(step)
    assert weight.item() == pytest.approx(0.98, abs=0.004)


def test_state_goes_on_exactly() -> None:
    def made() -> tuple[torch.nn.Parameter, MasterAdamW]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        return weight, MasterAdamW([weight], Training(steps=10, learning_rate=0.1))

    first, one = made()
    for step in (1, 2, 3):
        first.grad = first.detach().clone()
        one.step(step)
    second, other = made()
    other.load_state_dict(one.state_dict())
    for weight, optimizer in ((first, one), (second, other)):
        weight.grad = weight.detach().clone()
        optimizer.step(4)
    assert torch.equal(first, second)


def test_diverged_run_says_so() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = MasterAdamW([weight], Training(steps=10))
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(FailedPrecondition, match="not finite at step 7"):
        optimizer.step(7)
