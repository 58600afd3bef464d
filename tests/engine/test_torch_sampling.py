"""The twin of the native code: truncation equals transformers' warpers, draws follow the distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from router.engine import torch_sampling as module
from router.engine.ops import GREEDY, Choice
from router.engine.torch_sampling import TorchChooser, draw, truncate


def test_default_rows_do_not_pay_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    shaped = TorchChooser._shaped
    monkeypatch.setattr(
        TorchChooser,
        "_shaped",
        lambda self, scores, choices: seen.append(len(choices)) or shaped(self, scores, choices),
    )
    chooser, logits = TorchChooser(), torch.randn(4, 300)
    chooser.choose(logits, [GREEDY] * 4)
    assert seen == []
    chooser.choose(logits, [GREEDY, Choice(temperature=1.0), GREEDY, Choice(top_p=0.5)])
    assert seen == [1]


def theirs(scores: torch.Tensor, p: Choice) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(p.temperature)])
    if p.top_k:
        warpers.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1:
        warpers.append(TopPLogitsWarper(p.top_p))
    if p.min_p:
        warpers.append(MinPLogitsWarper(p.min_p))
    return torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), scores), -1)


@pytest.mark.slow
@given(
    vocab=st.sampled_from([5, 64, 100, 3000]),
    spread=st.sampled_from([0.01, 0.3, 3.0, 30.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 60, 64, 65, 500, 5000]),
    top_p=st.sampled_from([0.001, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_truncation_is_that_of_transformers(
    vocab: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    scores = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    p = Choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = torch.softmax(scores / temperature, -1)
    truncate(ours, [p])
    expected = theirs(scores, p)
    differing = (ours > 0) != (expected > 0)
    # numbers this small are 0 or not by how a softmax rounds
    differing &= torch.maximum(ours, expected) >= torch.finfo(torch.float32).tiny
    # float32 sums of theirs may round one token at the border of the nucleus to the other side
    assert int(differing.sum()) <= (1 if top_p < 1 else 0)


@given(rows=st.lists(st.tuples(st.integers(0, 200), st.floats(0.05, 1.0)), min_size=1, max_size=6))
def test_few_best_and_histogram_agree(rows: list[tuple[int, float]]) -> None:
    probs = torch.softmax(torch.randn(len(rows), 700, generator=torch.Generator().manual_seed(1)) * 2, -1)
    params = [Choice(top_k=k, top_p=p) for k, p in rows]
    by_few, by_histogram = probs.clone(), probs.clone()
    truncate(by_few, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WIDTH", 1)
        truncate(by_histogram, params)
    assert torch.equal(by_few, by_histogram)


def test_equals_of_the_last_kept_token_are_kept() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.1]])
    truncate(probs, [Choice(top_k=3)])
    assert (probs > 0).all()
    probs = torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.1]])
    truncate(probs, [Choice(top_p=0.7)])
    assert (probs[0] > 0).tolist() == [False, True, False, True, False]


def test_rows_that_do_not_truncate_are_left_as_they_are() -> None:
    probs = torch.softmax(torch.randn(3, 500), -1)
    before = probs.clone()
    truncate(probs, [Choice(), Choice(top_k=1), Choice(top_k=9999)])
    assert torch.equal(probs[[0, 2]], before[[0, 2]])
    assert int((probs[1] > 0).sum()) == 1


@pytest.mark.parametrize("vocab", [1, 5, 32, 33, 1000])
def test_draws_follow_the_distribution(vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(1, vocab, generator=generator), -1)
    probs[0, 1:-1:3] = 0.0
    count = 20_000
    grid = [(i + 0.5) / count for i in range(count)]  # inversion of an even grid has no sampling noise
    drawn = torch.tensor(draw(probs.expand(count, -1), grid))
    frequencies = torch.bincount(drawn, minlength=vocab) / count
    torch.testing.assert_close(frequencies, probs[0] / probs[0].sum(), atol=2 / count, rtol=0)


@given(places=st.sets(st.integers(0, 99), min_size=1, max_size=3), uniform=st.floats(0, 1, exclude_max=True))
def test_a_token_without_probability_is_never_drawn(places: set[int], uniform: float) -> None:
    probs = torch.zeros(1, 100)
    probs[0, sorted(places)] = torch.tensor([1e-30, 0.7, 1e-3])[: len(places)]
    assert draw(probs, [uniform])[0] in places
    assert draw(probs, [1 - 2**-53])[0] in places


@pytest.mark.parametrize("width", [64, 1])
def test_top_k_keeps_tokens_that_vanish_in_a_sum(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WIDTH", width)
    probs = torch.tensor([[1e-20, 1.0, 1e-17, 1e-25]])
    truncate(probs, [Choice(top_k=3)])
    assert (probs[0] > 0).tolist() == [True, True, True, False]
