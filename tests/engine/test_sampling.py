"""Rows independent of each other, penalties, suppression, log-probabilities, truncation and drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from router.engine import sampling as module
from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module
from router.engine.ops import GREEDY, TokenChoice
from router.engine.sampling import Sampler, SamplingState, TorchChooser, draw, truncate
from router.engine.torch_ops import TorchOps
from router.types import SamplingParams, TokenLogprob

pytestmark = pytest.mark.timeout(600)  # the first run compiles

VOCAB, EOS = 300, 7
BROKEN = [float("nan"), float("inf")]


def logits(seed: int, rows: int = 1, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def spelt(token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
    return TokenLogprob(f"<{token}>", token, logprob, tuple((f"<{t}>", t, value) for t, value in top))


def sampler_of(ops: TorchOps) -> Sampler:
    return Sampler(VOCAB, spelt, ops.choose)


@pytest.fixture(scope="module", params=["torch", *cpu_levels()])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    """By the plain operations, and by the native ones of each instruction set."""
    level = request.param
    return sampler_of(TorchOps() if level == "torch" else NativeOps(load_module(level)))


def state(prompt: Sequence[int] = (1, 2, 3), **params: Any) -> SamplingState:
    return SamplingState(SamplingParams(**params), prompt, [EOS])


def answer(sampler: Sampler, params: dict[str, Any], steps: torch.Tensor) -> list[int]:
    """Sample one row alone, step by step, over given logits [steps, vocab]."""
    row, tokens = state(**params), []
    for step in steps:
        (sampled,) = sampler.sample(step[None], [row])
        row.accept(sampled.token)
        tokens.append(sampled.token)
    return tokens


params = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-30, 0.3, 1.0, 50.0]), "seed": st.integers(0, 2**63)},
    optional={
        "logit_bias": st.sampled_from([(), ((3, 5.0), (250, -7.5))]),
        "top_p": st.floats(0.01, 1.0),
        "top_k": st.integers(0, 400),
        "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.5, 2.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "presence_penalty": st.floats(-2.0, 2.0),
        "min_tokens": st.integers(0, 3),
        "logprobs": st.integers(0, 5),
    },
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_and_the_first_of_equals(sampler: Sampler, dtype: torch.dtype) -> None:
    values = logits(1, 6).to(dtype)
    values[2, [50, 60]] = 99.0
    before = values.clone()
    sampled = sampler.sample(values, [state() for _ in range(6)])
    assert [s.token for s in sampled] == [int(row.float().argmax()) for row in values]
    assert sampled[2].token == 50
    assert torch.equal(values, before)


@given(rows=st.lists(params, min_size=1, max_size=5), broken=st.data())
def test_a_row_that_is_not_finite_fails_alone(
    sampler: Sampler, rows: list[dict[str, Any]], broken: st.DataObject
) -> None:
    values = logits(5, len(rows))
    healthy = [s.token for s in sampler.sample(values, [state(**p) for p in rows])]
    bad = broken.draw(st.integers(0, len(rows) - 1))
    places = broken.draw(st.sampled_from([[0], [VOCAB - 1], [EOS], list(range(VOCAB))]))
    values[bad, places] = broken.draw(st.sampled_from(BROKEN))
    sampled = sampler.sample(values, [state(**p) for p in rows])
    assert [s.failed for s in sampled] == [row == bad for row in range(len(rows))]
    assert [s.token for row, s in enumerate(sampled) if row != bad] == healthy[:bad] + healthy[bad + 1 :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_from_fails_and_one_finite_score_is_enough(
    sampler: Sampler, temperature: float
) -> None:
    values = torch.full((5, VOCAB), -torch.inf)
    values[1, 11] = -5.0
    values[2:, EOS] = 1.0
    rows = [state(temperature=temperature), state(temperature=temperature)]
    rows.append(state(temperature=temperature, min_tokens=1))
    rows += [constrained(allowed, temperature=temperature) for allowed in ([4], [])]
    sampled = sampler.sample(values, rows)
    assert [s.failed for s in sampled] == [True, False, True, True, True]
    assert sampled[1].token == 11
    assert sampler.sample(values[:0], []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_suppress_the_end_and_nothing_else(sampler: Sampler, temperature: float) -> None:
    values = torch.zeros(1, VOCAB)
    values[0, EOS], values[0, 9] = 100.0, 50.0
    assert answer(sampler, {"temperature": temperature, "seed": 1, "min_tokens": 2}, values.repeat(4, 1)) == [
        9,
        9,
        EOS,
        EOS,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_before_the_choice(sampler: Sampler, dtype: torch.dtype) -> None:
    values = logits(3, 1).to(dtype)
    best, second = (int(token) for token in values[0].float().topk(2).indices)
    gap = float(values[0, best] - values[0, second])
    for bias, token in (
        (((best, -100.0),), second),
        (((17, 100.0),), 17),
        (((second, gap + 0.01),), second),
        (((second, gap - 0.01),), best),
    ):
        for params in ({}, {"temperature": 1e-3, "seed": 1}, {"logprobs": 2}):
            (sampled,) = sampler.sample(values, [state(logit_bias=bias, **params)])
            assert sampled.token == token, (bias, params)
            if sampled.top:  # of the raw distribution
                assert [one for one, _ in sampled.top] == [best, second]
                assert sampled.logprob == pytest.approx(
                    float(torch.log_softmax(values[0].float(), -1)[token]), abs=1e-4
                )


def test_rows_with_a_bias_change_no_other_row(sampler: Sampler) -> None:
    values = logits(4, 6)
    before = values.clone()
    kinds: list[dict[str, Any]] = [
        {"seed": 9},
        {"temperature": 1.0, "seed": 3},
        {"logit_bias": ((5, 2.0),), "seed": 4},
    ]
    rows = [kinds[row % 3] | ({"temperature": 0.7} if row > 2 else {}) for row in range(6)]
    alone = [sampler.sample(values[row : row + 1], [state(**rows[row])])[0] for row in range(6)]
    assert sampler.sample(values, [state(**row) for row in rows]) == alone
    assert torch.equal(values, before)


def test_a_seed_repeats_and_no_seed_does_not(sampler: Sampler) -> None:
    steps = torch.zeros(20, VOCAB)
    assert answer(sampler, {"temperature": 1.0, "seed": 3}, steps) == answer(
        sampler, {"temperature": 1.0, "seed": 3}, steps
    )
    assert answer(sampler, {"temperature": 1.0, "seed": 3}, steps) != answer(
        sampler, {"temperature": 1.0, "seed": 4}, steps
    )
    assert answer(sampler, {"temperature": 1.0}, steps) != answer(sampler, {"temperature": 1.0}, steps)


@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=200),
    penalty=st.floats(0.5, 2.0),
    seed=st.integers(0, 99),
)
def test_repetition_penalty_is_that_of_transformers(
    sampler: Sampler, prompt: list[int], penalty: float, seed: int
) -> None:
    values, row = logits(seed), state(prompt, repetition_penalty=penalty)
    tokens = list(prompt)
    for _ in range(5):
        ids = torch.tensor([tokens], dtype=torch.long)
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, values.clone()) if tokens else values
        (sampled,) = sampler.sample(values, [row])
        assert sampled.token == int(expected.argmax())
        row.accept(sampled.token)
        tokens.append(sampled.token)


def test_frequency_and_presence_count_the_answer_only(sampler: Sampler) -> None:
    values = torch.zeros(1, VOCAB)
    values[0, 5], values[0, 6] = 1.0, 0.5
    row = state([5, 5, 5], frequency_penalty=0.2, presence_penalty=0.15)
    tokens = []
    for _ in range(5):
        (sampled,) = sampler.sample(values, [row])
        row.accept(sampled.token)
        tokens.append(sampled.token)
    # 5: 1.0, 0.65, then 0.45 < 0.5; 6: 0.5, 0.15; 5: 0.45, 0.25; 5: 0.25
    assert tokens == [5, 5, 6, 5, 5]


@given(count=st.integers(1, 20), temperature=st.sampled_from([0.0, 0.7]))
@settings(max_examples=20, deadline=None)
def test_logprobs_are_of_the_raw_distribution(sampler: Sampler, count: int, temperature: float) -> None:
    values = logits(3)
    row = state(
        temperature=temperature, seed=1, logprobs=count, top_k=2, repetition_penalty=1.5, min_tokens=1
    )
    (sampled,) = sampler.sample(values, [row])
    raw = torch.log_softmax(values[0], -1)
    logprob = sampler.logprob(sampled)
    assert logprob is not None
    assert logprob.token == f"<{sampled.token}>"
    assert logprob.logprob == pytest.approx(float(raw[sampled.token]), abs=1e-5)
    best = raw.topk(count)
    assert [i for _, i, _ in logprob.top] == best.indices.tolist()
    assert [p for _, _, p in logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert logprob.top[0][0] == f"<{best.indices[0]}>"


def test_rows_without_logprobs_have_none_and_padding_is_never_sampled(sampler: Sampler) -> None:
    values = torch.cat([logits(1, 3), torch.full((3, 20), 99.0)], -1)
    rows = [state(), state(logprobs=1), state(temperature=5.0, seed=1)]
    sampled = sampler.sample(values, rows)
    assert [sampler.logprob(s) is None for s in sampled] == [True, False, True]
    assert all(s.token < VOCAB for s in sampled)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_chooses_as_the_processor_does() -> None:
    values = torch.arange(4 * VOCAB, dtype=torch.float32).view(4, VOCAB) % 89 * 0.5
    values[3, 5] = torch.nan
    settings_of = [
        {},
        {"temperature": 0.5, "top_p": 0.6},
        {"repetition_penalty": 1.3, "min_tokens": 2},
        {"top_k": 3},
    ]
    ids = []
    for device in ("cpu", "cuda"):
        states = [state(**{"seed": 1, **p}) for p in settings_of]
        ids.append([s.token for s in sampler_of(TorchOps()).sample(values.to(device), states)])
    assert ids[0] == ids[1]
    assert ids[0][3] == -1


# -- Constraints: bits for the tokens that may come next.


def bits(*tokens: int) -> NDArray[np.int32]:
    packed = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    packed[list(tokens)] = 1
    return np.packbits(packed, bitorder="little").view(np.int32)


def constrained(allowed: Sequence[int], **params: Any) -> SamplingState:
    return SamplingState(SamplingParams(**params), (1, 2, 3), [EOS], bits(*allowed))


@given(
    allowed=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
    params=params,
    seed=st.integers(0, 99),
)
def test_only_what_is_allowed_is_drawn(
    sampler: Sampler, allowed: list[int], params: dict[str, Any], seed: int
) -> None:
    (sampled,) = sampler.sample(logits(seed), [constrained(allowed, **params)])
    assert sampled.token in allowed


@given(allowed=st.lists(st.integers(0, VOCAB - 1), min_size=1), seed=st.integers(0, 99))
def test_greedy_takes_the_likeliest_that_is_allowed(sampler: Sampler, allowed: list[int], seed: int) -> None:
    values = logits(seed, rows=3)
    states = [state(), constrained(allowed), state(logprobs=2)]
    sampled = sampler.sample(values, states)
    assert sampled[1].token == max(sorted(allowed), key=lambda token: values[1, token].item())
    assert [sampled[0].token, sampled[2].token] == [values[0].argmax().item(), values[2].argmax().item()]


def test_log_probabilities_are_of_the_raw_distribution(sampler: Sampler) -> None:
    values = logits(5)
    worst = int(values[0].argmin())
    (sampled,) = sampler.sample(values, [constrained([worst], logprobs=1)])
    assert sampled.token == worst
    raw = torch.log_softmax(values[0], -1)
    assert sampled.logprob == pytest.approx(raw[worst].item())
    assert sampled.top[0][0] == int(values[0].argmax())


def test_ends_are_the_constraints_business(sampler: Sampler) -> None:
    (sampled,) = sampler.sample(logits(3), [constrained([EOS], min_tokens=9)])
    assert sampled.token == EOS


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
    chooser.choose(logits, [GREEDY, TokenChoice(temperature=1.0), GREEDY, TokenChoice(top_p=0.5)])
    assert seen == [1]


def theirs(scores: torch.Tensor, p: TokenChoice) -> torch.Tensor:
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
    p = TokenChoice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
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
    params = [TokenChoice(top_k=k, top_p=p) for k, p in rows]
    by_few, by_histogram = probs.clone(), probs.clone()
    truncate(by_few, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WIDTH", 1)
        truncate(by_histogram, params)
    assert torch.equal(by_few, by_histogram)


def test_equals_of_the_last_kept_token_are_kept() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.1]])
    truncate(probs, [TokenChoice(top_k=3)])
    assert (probs > 0).all()
    probs = torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.1]])
    truncate(probs, [TokenChoice(top_p=0.7)])
    assert (probs[0] > 0).tolist() == [False, True, False, True, False]


def test_rows_that_do_not_truncate_are_left_as_they_are() -> None:
    probs = torch.softmax(torch.randn(3, 500), -1)
    before = probs.clone()
    truncate(probs, [TokenChoice(), TokenChoice(top_k=1), TokenChoice(top_k=9999)])
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
    truncate(probs, [TokenChoice(top_k=3)])
    assert (probs[0] > 0).tolist() == [True, True, True, False]
