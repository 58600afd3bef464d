"""Teacher-forced log-probabilities of the answers in a batch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from router.training.batch import IGNORED, Batch


class AnswerModel:
    """Runs a causal LM over batches and looks at answer tokens only.

    Two savings, both exact: the output matrix is applied at answer positions alone, and the
    beginning that all rows of a batch share goes through the model once, its keys and values
    expanded to every row (gradients flow back through them).
    """

    def __init__(self, model: Any) -> None:
        """`model` is a transformers causal LM or a PEFT model around one."""
        self.model = model
        self._wanted = torch.zeros(0, dtype=torch.bool)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings()
        self._hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][self._wanted],))
        parameters = inspect.signature(base.forward).parameters
        self._cache_name = (
            "cache" if "cache" in parameters else "past_key_values"
        )  # renamed in transformers 5

    def close(self) -> None:
        """Give the model its plain output layer back."""
        self._hook.remove()

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 logits [N, V] at the N answer positions of the batch, and the N tokens wanted."""
        extra: dict[str, Any] = {"use_cache": False}
        if batch.prefix.shape[1]:
            self._wanted = torch.zeros_like(batch.prefix, dtype=torch.bool)
            cache = DynamicCache()
            self.model(input_ids=batch.prefix, use_cache=True, **{self._cache_name: cache})
            cache.batch_repeat_interleave(batch.tokens.shape[0])
            extra = {"use_cache": True, self._cache_name: cache}
        self._wanted = batch.targets != IGNORED
        logits = self.model(input_ids=batch.tokens, **extra).logits
        return logits.float(), batch.targets[self._wanted]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean negative log-likelihood in nats per answer token."""
        return functional.cross_entropy(*self.logits(batch))

    @torch.no_grad()
    def judge(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each row [B]: nats of its answer, its answer's tokens, and whether greedy decoding gives it."""
        logits, wanted = self.logits(batch)
        mask = batch.targets != IGNORED
        nats = torch.zeros(mask.shape, device=logits.device)
        nats[mask] = functional.cross_entropy(logits, wanted, reduction="none")
        hit = torch.ones_like(mask)
        hit[mask] = logits.argmax(-1) == wanted
        return nats.sum(1), mask.sum(1), hit.all(1)
