"""AdamW over float32 copies of the trained weights, and the learning rate's schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch

from router.errors import FailedPrecondition
from router.training.recipe import Training


def rate_factor(step: int, plan: Training) -> float:
    """What the learning rate is multiplied by at `step` (1 … steps); it ends at 0.02 of its peak."""
    warmup = plan.warmup * plan.steps
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / max(1.0, plan.steps - warmup)
    if plan.schedule == "constant":
        return 1.0
    falling = 1 - done if plan.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return max(falling, 0.02)


class MasterAdamW:
    """Keeps float32 masters, so that small updates are not lost when the model itself is bfloat16.

    Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], plan: Training) -> None:
        self._live = [p for p in parameters if p.requires_grad]
        self._masters = [p.detach().float().clone().requires_grad_() for p in self._live]
        self._plan = plan
        self._adam = torch.optim.AdamW(
            self._masters, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99)
        )

    def step(self, number: int) -> float:
        """Apply the gradients of the live weights; returns the gradient norm before clipping."""
        for live, master in zip(self._live, self._masters, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._plan.clip)
        if not torch.isfinite(norm):
            raise FailedPrecondition(f"gradients are not finite at step {number}: lower train.learning_rate")
        for group in self._adam.param_groups:
            group["lr"] = self._plan.learning_rate * rate_factor(number, self._plan)
        self._adam.step()
        self._copy_back()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments, to go on exactly where it was."""
        return {
            "masters": [m.detach().clone() for m in self._masters],
            "adam": copy.deepcopy(self._adam.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back, into the live weights too."""
        with torch.no_grad():
            for master, saved in zip(self._masters, state["masters"], strict=True):
                master.copy_(saved)
        self._adam.load_state_dict(state["adam"])
        self._copy_back()

    @torch.no_grad()
    def _copy_back(self) -> None:
        for live, master in zip(self._live, self._masters, strict=True):
            live.copy_(master)
