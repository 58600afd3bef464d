"""Probabilities of choices: those of the model under the constraint, whatever is in the batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from router.engine.base import Finished, Job, PoolingRequest, Prompt, with_grammar
from router.engine.labels import MOST, LabelTree
from router.engine.torch_engine import TorchEngine
from router.errors import InvalidRequest
from router.types import Constraint, LabelSettings, SamplingParams
from tests.engine import tiny

CHOICES = ("cat", "car", "ca", "dog", "dot com")
END = int(tiny.SHAPE["eos_token_id"])


def test_a_tree_reads_only_what_branches() -> None:
    tree = LabelTree.of([(1, 2, 3, 4, 5), (1, 2, 9, 4, 5), (7, 8)], (0,))
    assert [tree.way(one) for one in tree.branchings] == [(), (1, 2)]
    assert [one.children for one in tree.branchings] == [((1,), (7,)), ((3,), (9,))]
    assert [one.leads for one in tree.branchings] == [(~1, 2), (0, 1)]


def test_a_branching_is_found_by_its_way() -> None:
    tree = LabelTree.of([(1, 2, 3, 4, 5), (1, 2, 9, 4, 5), (7, 8)], (0,))
    assert tree.find(()) is tree.branchings[0]
    assert tree.find((1, 2)) is tree.branchings[1]
    assert [tree.find(way) for way in ((1,), (7,), (1, 2, 3), (1, 3), (4, 4, 4))] == [None] * 5


def test_one_choice_is_certain() -> None:
    tree = LabelTree.of([(1, 2)], (0,))
    assert tree.branchings == ()
    assert explored(tree, {}) == ([], [0.0])


def explored(
    tree: LabelTree, logits: dict[tuple[int, ...], list[float]]
) -> tuple[list[tuple[int, ...]], list[float]]:
    """The ways that are read, and the log-probabilities, where each way has such logits."""
    ways, exploring, found = [], tree.explored(), None
    while True:
        try:
            wave = next(exploring) if found is None else exploring.send(found)
        except StopIteration as end:
            return ways, end.value.tolist()
        ways += map(tree.way, wave)
        found = [np.array(logits[tree.way(one)]) for one in wave]


def test_an_unlikely_branch_is_not_read_and_its_choices_share_it() -> None:
    tree = LabelTree.of([(1, 2), (1, 3), (4, 5), (4, 6), (4, 7)], (0,))
    ways, found = explored(tree, {(): [0.0, -8.0], (1,): [0.0, 0.0]})
    assert ways == [(), (1,)]
    unlikely = math.exp(-8) / (1 + math.exp(-8))
    assert np.exp(found).tolist() == pytest.approx([(1 - unlikely) / 2] * 2 + [unlikely / 3] * 3)


def test_choices_come_back_as_they_were_given() -> None:
    tree = LabelTree.of([(9,), (1, 2), (1,), (9,)], (0, 5))
    _, found = explored(tree, {(): [math.log(3), 0.0], (1,): [0.0, 0.0, math.log(2)]})
    assert np.exp(found).tolist() == pytest.approx([0.25, 0.375, 0.375, 0.0]), "the last is the first again"


def test_choices_that_begin_each_other_are_no_deep_recursion() -> None:
    tree = LabelTree.of([(1,) * (1 + n) for n in range(1024)], (0,))
    assert len(tree.branchings) == 1023


def test_a_flat_tree_is_read_up_to_a_bound() -> None:
    choices = [(1 + a, 500 + b) for a in range(100) for b in range(2)]
    tree = LabelTree.of(choices, (0,))
    ways, found = explored(tree, {(): [0.0] * 100} | {(1 + a,): [0.0, 0.0] for a in range(100)})
    assert len(ways) == MOST
    assert np.exp(found).tolist() == pytest.approx([0.005] * 200)


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
    return (await answered(engine, prompt, **job))[1]


async def answered(engine: TorchEngine, prompt: list[int], **job: Any) -> tuple[str, Finished]:
    constraint = Constraint("choices", choices=CHOICES)
    params = SamplingParams(max_tokens=20, constraint=constraint, **job.pop("sampling", {}))
    asked = Job("r", prompt, params, labels=LabelSettings(), **job)
    text = ""
    async for event in engine.submit(await with_grammar(engine, asked)):
        if isinstance(event, Finished):
            return text, event
        text += event.text
    raise AssertionError


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
                assert end.labels == later.labels, "all read, and noted on the way of the answer"
            values = dict(end.labels.values)
            assert math.isclose(sum(values.values()), 1.0)
            assert not end.labels.calibrated
            right = expected(tiny.model("llama") if adapter is None else tuned, prompt, CHOICES)
            assert values == pytest.approx(right, rel=2e-3, abs=1e-6)
            assert list(values.values()) == sorted(values.values(), reverse=True)
    finally:
        engine.close()


async def test_what_is_on_the_way_of_the_answer_is_not_read() -> None:
    engine = tiny.engine("llama")
    read = []

    async def noted(request: PoolingRequest) -> Any:
        read.append(request.tokens[1:])
        return await reading(request)

    reading, engine.read = engine.read, noted  # type: ignore[method-assign]
    try:
        await labels_of(engine, [1, 2, 3], {})
        assert () in read
        read.clear()
        await labels_of(engine, [1, 2, 3], {})
        assert () not in read
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
    finally:
        engine.close()
