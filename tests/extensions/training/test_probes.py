"""Which validation rows become probes, and the answers they hold."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from router.extensions.training import export
from router.extensions.training.data import Example, TrainingBatch, TrainingRow
from router.extensions.training.export import greedy_tokens

RENDERING: Any = SimpleNamespace(
    example=lambda row: Example((1,), tuple(map(ord, row.response))),
    ends=[0],
    text=lambda tokens: "".join(map(chr, tokens)),
)
MODEL: Any = SimpleNamespace(device=torch.device("cpu"), disable_adapter=nullcontext)
ROWS = [TrainingRow(f"say {letter}", letter, "here") for letter in "abc"]


class Leading:
    """Stands for AnswerModel: "b" is nearly tied with another token, all others are certain."""

    def __init__(self, model: Any) -> None: ...

    def close(self) -> None: ...

    def logits(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = batch.targets[batch.targets >= 0]
        logits = torch.zeros(len(wanted), 128)
        logits[torch.arange(len(wanted)), wanted] = 20.0
        logits[wanted == ord("b"), 0] = 19.95
        return logits, wanted


def test_an_answer_with_a_near_tie_is_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = iter([[list(map(ord, "abc"))[i : i + 1] for i in range(3)], [[120], [120], [120]]])
    monkeypatch.setattr(export, "_nats_per_token", lambda model, examples: [0.1, 0.2, 0.3])
    monkeypatch.setattr(export, "greedy_tokens", lambda *given: next(spoken))
    monkeypatch.setattr(export, "AnswerModel", Leading)
    chosen = export.choose_probes(MODEL, RENDERING, ROWS, 2)
    assert [probe.expect for probe in chosen] == ["a", "c"]


PROMPTS = [(5, 6, 7, 8, 9), (10,), (11, 12, 13), (14, 15)]


def test_batched_answers_equal_answers_alone(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PROBE_BATCH", 3)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    together = greedy_tokens(model, PROMPTS, [1], 6)
    assert together == [greedy_tokens(model, [prompt], [1], 6)[0] for prompt in PROMPTS]
    assert all(len(answer) <= 6 for answer in together)


def test_end_token_ends_and_is_left_out(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    [free] = greedy_tokens(model, [(5, 6, 7)], [1], 6)
    stopped = greedy_tokens(model, [(5, 6, 7)], [1, free[2]], 6)[0]
    assert stopped == free[: free.index(free[2])]
