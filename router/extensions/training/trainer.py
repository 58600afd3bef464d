"""The training loop: AdamW on the LoRA weights; those that do best on the validation rows are kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from router.errors import FailedPrecondition
from router.extensions.training.data import AnswerModel, Example, collate, rows_of_step
from router.extensions.training.recipe import Training

EVAL_BATCH = 32
Record = dict[str, float]


@dataclass
class Progress:
    """What happened so far; `history` becomes train_log.jsonl."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
    seconds: float = 0.0
    history: list[Record] = field(default_factory=list)


class Trainer:
    """Trains the LoRA weights of a PEFT model; the best weights on the validation rows are kept."""

    def __init__(
        self,
        model: Any,
        train: Sequence[Example],
        valid: Sequence[Example],
        plan: Training,
        device: torch.device,
    ) -> None:
        """`model` is on `device` already."""
        self.model, self.plan, self.device = model, plan, device
        self.train, self.valid = train, sorted(valid, key=len)
        self.progress = Progress()
        self._lengths = [len(example) for example in train]
        self._answers = AnswerModel(model)
        self._optimizer = MasterAdamW(model.parameters(), plan)
        self._best_weights: dict[str, torch.Tensor] = {}

    def run(self, after_step: Callable[[Progress], bool]) -> None:
        """Train until the last step, until patience ends, or until `after_step` says False."""
        done = self.progress
        while done.step < self.plan.steps and done.stale < self.plan.patience:
            started = time.monotonic()
            record = self._step(done.step + 1)
            done.step += 1
            if done.step % self.plan.eval_every == 0 or done.step == self.plan.steps:
                record |= self._evaluate()
            done.seconds += time.monotonic() - started
            done.history.append(record | {"seconds": round(done.seconds, 2)})
            if not after_step(done):
                return

    def keep_best(self) -> None:
        """Put the best weights into the model."""
        self._answers.close()
        set_peft_model_state_dict(self.model, self._best_weights)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "progress": vars(self.progress),
            "best_weights": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.progress = Progress(**state["progress"])
        self._best_weights = state["best_weights"]
        self._optimizer.load_state_dict(state["optimizer"])

    def _step(self, number: int) -> Record:
        self.model.train()
        rows = rows_of_step(number, self._lengths, self.plan.batch, self.plan.seed)
        batch = collate([self.train[row] for row in rows])
        loss = self._answers.loss(batch.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._optimizer.step(number)
        return {"step": number, "loss": round(loss.item(), 5), "norm": round(norm, 4)}

    def _evaluate(self) -> Record:
        self.model.eval()
        totals = torch.zeros(3)
        for start in range(0, len(self.valid), EVAL_BATCH):
            batch = collate(self.valid[start : start + EVAL_BATCH]).to(self.device)
            totals += torch.tensor([float(values.sum()) for values in self._answers.judge(batch)])
        nats, tokens, exact = totals.tolist()
        loss, share = nats / tokens, exact / len(self.valid)
        self._remember(loss if self.plan.select == "loss" else -share)
        return {"valid_loss": round(loss, 5), "valid_exact": round(share, 5)}

    def _remember(self, score: float) -> None:
        done = self.progress
        done.stale += 1
        if score < done.best:
            done.best, done.best_step, done.stale = score, done.step, 0
            weights = get_peft_model_state_dict(self.model)
            self._best_weights = {name: value.detach().clone() for name, value in weights.items()}


class MasterAdamW:
    """Keeps float32 masters, so that small updates are not lost: live weights are what bfloat16 can hold.

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
            live.copy_(master.bfloat16())  # whatever dtype it has: what is evaluated is what is saved


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
