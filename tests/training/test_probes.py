"""Which validation rows become probes."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from router.training import probes
from router.training.batch import Batch, Example
from router.training.data import Row

RENDERING: Any = SimpleNamespace(
    example=lambda row: Example((1,), tuple(map(ord, row.response))),
    ends=[0],
    text=lambda tokens: "".join(map(chr, tokens)),
)
MODEL: Any = SimpleNamespace(device=torch.device("cpu"), disable_adapter=nullcontext)
ROWS = [Row(f"say {letter}", letter, "here") for letter in "abc"]


class Leading:
    """Stands for AnswerModel: "b" is nearly tied with another token, all others are certain."""

    def __init__(self, model: Any) -> None: ...

    def close(self) -> None: ...

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = batch.targets[batch.targets >= 0]
        logits = torch.zeros(len(wanted), 128)
        logits[torch.arange(len(wanted)), wanted] = 20.0
        logits[wanted == ord("b"), 0] = 19.95
        return logits, wanted


def test_an_answer_with_a_near_tie_is_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = iter([[list(map(ord, "abc"))[i : i + 1] for i in range(3)], [[120], [120], [120]]])
    monkeypatch.setattr(probes, "_nats_per_token", lambda model, examples: [0.1, 0.2, 0.3])
    monkeypatch.setattr(probes, "greedy_tokens", lambda *given: next(spoken))
    monkeypatch.setattr(probes, "AnswerModel", Leading)
    chosen = probes.choose_probes(MODEL, RENDERING, ROWS, 2)
    assert [probe.expect for probe in chosen] == ["a", "c"]
