"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from router.training.answers import AnswerModel
from router.training.batch import Example, collate
from router.training.optimizer import MasterAdamW
from router.training.order import rows_of_step
from router.training.recipe import Training

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
