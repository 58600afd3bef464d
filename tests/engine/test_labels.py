"""Probabilities of choices: those of the model under the constraint, whatever is in the batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from router.engine.base import Finished, Job, Prompt, with_grammar
from router.engine.labels import LabelTree
from router.engine.torch_engine import TorchEngine
from router.errors import InvalidRequest
from router.types import Constraint, LabelSettings, SamplingParams
from tests.engine import tiny

CHOICES = ("cat", "car", "ca", "dog", "dot com")
END = int(tiny.SHAPE["eos_token_id"])


def test_a_tree_reads_only_what_branches() -> None:
    tree = LabelTree.of([(1, 2, 3, 4, 5), (1, 2, 9, 4, 5), (7, 8)], (0,))
    assert tree.paths == ((1, 2),)
    assert [(one.before, one.children) for one in tree.branchings] == [(0, ((1,), (7,))), (2, ((3,), (9,)))]


def test_one_choice_is_certain() -> None:
    tree = LabelTree.of([(1, 2)], (0,))
    assert tree.paths == ()
    assert tree.log_probabilities([]).tolist() == [0.0]


@torch.inference_mode()
def expected(model: Any, prompt: Sequence[int], choices: Sequence[str]) -> dict[str, float]:
    """The same by transformers: one token at a time, of those that the choices allow."""
    found = dict.fromkeys(choices, 1.0)
    vocabulary = {c: tiny.tokenizer().encode(c) for c in choices}
    whole = {choice: [*vocabulary[choice], END] for choice in choices}
    for choice, tokens in whole.items():
        for place, token in enumerate(tokens):
            allowed = {t[place] for t in whole.values() if t[:place] == tokens[:place]}
            logits = model(torch.tensor([[*prompt, *tokens[:place]]])).logits[0, -1]
            found[choice] *= float(logits[token].exp() / logits[list(allowed)].exp().sum())
    return found


async def labels_of(engine: TorchEngine, prompt: list[int], job: dict[str, Any]) -> Finished:
    params = SamplingParams(max_tokens=20, constraint=Constraint("choices", choices=CHOICES))
    asked = Job("r", prompt, params, labels=LabelSettings(), **job)
    async for event in engine.submit(await with_grammar(engine, asked)):
        end = event
    assert isinstance(end, Finished)
    return end


@pytest.mark.parametrize("native", [False, True])
async def test_probabilities_are_those_under_the_constraint(tmp_path: Path, native: bool) -> None:
    tuned = tiny.save_adapter("llama", tmp_path / "a")
    engine = tiny.engine("llama", native=native, max_step_tokens=24)
    try:
        artifact = tiny.artifact(tmp_path / "a", engine)
        await engine.load(artifact)
        prompts = [engine.encode(Prompt(raw=text)) for text in ("what is it", "a much longer question " * 4)]
        jobs = [(prompt, adapter) for prompt in prompts for adapter in (None, artifact.digest)]
        ends = await asyncio.gather(*(labels_of(engine, p, {"adapter": a}) for p, a in jobs))
        again = [await labels_of(engine, p, {"adapter": a}) for p, a in jobs]
        for (prompt, adapter), end, later in zip(jobs, ends, again, strict=True):
            assert end.labels is not None
            assert later.labels is not None
            if native:
                assert end.labels == later.labels, "alone and with the prompt in the cache"
            values = dict(end.labels.values)
            assert math.isclose(sum(values.values()), 1.0)
            assert not end.labels.calibrated
            right = expected(tiny.model("llama") if adapter is None else tuned, prompt, CHOICES)
            assert values == pytest.approx(right, rel=2e-3, abs=1e-6)
            assert list(values.values()) == sorted(values.values(), reverse=True)
    finally:
        engine.close()


async def test_a_temperature_scales_them() -> None:
    engine = tiny.engine("llama")
    try:
        plain = (await labels_of(engine, [1, 2, 3], {})).labels
        params = SamplingParams(max_tokens=20, constraint=Constraint("choices", choices=CHOICES))
        job = Job("r", [1, 2, 3], params, labels=LabelSettings(temperature=2.0))
        async for event in engine.submit(await with_grammar(engine, job)):
            end = event
        assert isinstance(end, Finished)
        assert end.labels is not None
        assert plain is not None
        assert end.labels.calibrated
        roots = {label: math.sqrt(p) for label, p in plain.values}
        right = {label: root / sum(roots.values()) for label, root in roots.items()}
        assert dict(end.labels.values) == pytest.approx(right)
    finally:
        engine.close()


async def test_without_choices_there_are_no_labels() -> None:
    engine = tiny.engine("llama")
    try:
        with pytest.raises(InvalidRequest, match="needs choices"):
            engine.submit(Job("r", [1, 2], SamplingParams(max_tokens=9), labels=LabelSettings()))
        many = Constraint("choices", choices=tuple(f"label {n}" for n in range(300)))
        params = SamplingParams(max_tokens=9, constraint=many)
        with pytest.raises(InvalidRequest, match="at most 256 choices"):
            engine.submit(await with_grammar(engine, Job("r", [1, 2], params, labels=LabelSettings())))
    finally:
        engine.close()
