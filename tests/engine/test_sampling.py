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
from transformers import RepetitionPenaltyLogitsProcessor

from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module
from router.engine.ops import Ops
from router.engine.sampling import Sampled, Sampler, SamplingState
from router.engine.torch_ops import TorchOps
from router.types import SamplingParams

pytestmark = pytest.mark.timeout(600)  # the first run compiles

VOCAB, EOS = 300, 7
BROKEN = [float("nan"), float("inf")]


def logits(seed: int, rows: int = 1, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def sampler_of(ops: Ops) -> Sampler:
    return Sampler(VOCAB, lambda token: f"<{token}>", ops.choose)


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
        row.accept(sampled.id)
        tokens.append(sampled.id)
    return tokens


params = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-30, 0.3, 1.0, 50.0]), "seed": st.integers(0, 2**63)},
    optional={
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


@pytest.mark.slow
@given(rows=st.lists(params, min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_a_row_is_the_same_whatever_the_batch_around_it(
    sampler: Sampler, rows: list[dict[str, Any]], seed: int
) -> None:
    steps = [logits(seed + step, len(rows)) for step in range(4)]
    alone = [answer(sampler, p, torch.stack([step[row] for step in steps])) for row, p in enumerate(rows)]
    states, together = [state(**p) for p in rows], [[] for _ in rows]
    for step in steps:
        for row, sampled in enumerate(sampler.sample(step, states)):
            states[row].accept(sampled.id)
            together[row].append(sampled.id)
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_and_the_first_of_equals(sampler: Sampler, dtype: torch.dtype) -> None:
    values = logits(1, 6).to(dtype)
    values[2, [50, 60]] = 99.0
    before = values.clone()
    sampled = sampler.sample(values, [state() for _ in range(6)])
    assert [s.id for s in sampled] == [int(row.float().argmax()) for row in values]
    assert sampled[2] == Sampled(50)
    assert torch.equal(values, before)


@given(rows=st.lists(params, min_size=1, max_size=5), broken=st.data())
def test_a_row_that_is_not_finite_fails_alone(
    sampler: Sampler, rows: list[dict[str, Any]], broken: st.DataObject
) -> None:
    values = logits(5, len(rows))
    healthy = [s.id for s in sampler.sample(values, [state(**p) for p in rows])]
    bad = broken.draw(st.integers(0, len(rows) - 1))
    places = broken.draw(st.sampled_from([[0], [VOCAB - 1], [EOS], list(range(VOCAB))]))
    values[bad, places] = broken.draw(st.sampled_from(BROKEN))
    sampled = sampler.sample(values, [state(**p) for p in rows])
    assert [s.failed for s in sampled] == [row == bad for row in range(len(rows))]
    assert [s.id for row, s in enumerate(sampled) if row != bad] == healthy[:bad] + healthy[bad + 1 :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_from_fails_and_one_finite_score_is_enough(
    sampler: Sampler, temperature: float
) -> None:
    values = torch.full((3, VOCAB), -torch.inf)
    values[1, 11] = -5.0
    values[2, EOS] = 1.0
    rows = [
        state(temperature=temperature),
        state(temperature=temperature),
        state(temperature=temperature, min_tokens=1),
    ]
    sampled = sampler.sample(values, rows)
    assert [s.failed for s in sampled] == [True, False, True]
    assert sampled[1].id == 11


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
        assert sampled.id == int(expected.argmax())
        row.accept(sampled.id)
        tokens.append(sampled.id)


def test_frequency_and_presence_count_the_answer_only(sampler: Sampler) -> None:
    values = torch.zeros(1, VOCAB)
    values[0, 5], values[0, 6] = 1.0, 0.5
    row = state([5, 5, 5], frequency_penalty=0.2, presence_penalty=0.15)
    tokens = []
    for _ in range(5):
        (sampled,) = sampler.sample(values, [row])
        row.accept(sampled.id)
        tokens.append(sampled.id)
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
    assert sampled.logprob is not None
    assert sampled.logprob.token == f"<{sampled.id}>"
    assert sampled.logprob.logprob == pytest.approx(float(raw[sampled.id]), abs=1e-5)
    best = raw.topk(count)
    assert [i for _, i, _ in sampled.logprob.top] == best.indices.tolist()
    assert [p for _, _, p in sampled.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert sampled.logprob.top[0][0] == f"<{best.indices[0]}>"


def test_rows_without_logprobs_have_none_and_padding_is_never_sampled(sampler: Sampler) -> None:
    values = torch.cat([logits(1, 3), torch.full((3, 20), 99.0)], -1)
    rows = [state(), state(logprobs=1), state(temperature=5.0, seed=1)]
    sampled = sampler.sample(values, rows)
    assert [s.logprob is None for s in sampled] == [True, False, True]
    assert all(s.id < VOCAB for s in sampled)


def test_no_rows_are_nothing_to_do(sampler: Sampler) -> None:
    assert sampler.sample(logits(1, 0), []) == []


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
        ids.append([s.id for s in sampler_of(TorchOps()).sample(values.to(device), states)])
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
    assert sampled.id in allowed


@given(allowed=st.lists(st.integers(0, VOCAB - 1), min_size=1), seed=st.integers(0, 99))
def test_greedy_takes_the_likeliest_that_is_allowed(sampler: Sampler, allowed: list[int], seed: int) -> None:
    values = logits(seed, rows=3)
    states = [state(), constrained(allowed), state(logprobs=2)]
    sampled = sampler.sample(values, states)
    assert sampled[1].id == max(sorted(allowed), key=lambda token: values[1, token].item())
    assert [sampled[0].id, sampled[2].id] == [values[0].argmax().item(), values[2].argmax().item()]


def test_log_probabilities_are_of_the_raw_distribution(sampler: Sampler) -> None:
    values = logits(5)
    worst = int(values[0].argmin())
    (sampled,) = sampler.sample(values, [constrained([worst], logprobs=1)])
    assert sampled.id == worst
    assert sampled.logprob is not None
    raw = torch.log_softmax(values[0], -1)
    assert sampled.logprob.logprob == pytest.approx(raw[worst].item())
    assert sampled.logprob.top[0][1] == int(values[0].argmax())


@pytest.mark.parametrize("broken", BROKEN)
def test_constrained_rows_whose_logits_are_broken_fail_alone(sampler: Sampler, broken: float) -> None:
    values = logits(1, rows=3)
    values[1, 9] = broken
    sampled = sampler.sample(values, [constrained([4]), constrained([4]), constrained([4])])
    assert [entry.failed for entry in sampled] == [False, True, False]


def test_nothing_allowed_fails(sampler: Sampler) -> None:
    values = logits(2, rows=2)
    values[0, 4] = -torch.inf
    sampled = sampler.sample(values, [constrained([4]), constrained([], temperature=1.0)])
    assert [entry.failed for entry in sampled] == [True, True]


def test_ends_are_the_constraints_business(sampler: Sampler) -> None:
    (sampled,) = sampler.sample(logits(3), [constrained([EOS], min_tokens=9)])
    assert sampled.id == EOS
