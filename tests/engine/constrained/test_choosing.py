"""Rows that look first get what they would have got from their masks."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.constrained.choosing import choose
from router.engine.constrained.follow import Follower
from router.engine.constrained.masks import MaskMaker
from router.engine.sampling import Sampled, Sampler, SamplingState
from router.engine.torch_sampling import TorchChooser
from router.types import Constraint, SamplingParams
from tests.engine.constrained.driving import allowed, base, compiled

WIDTH, ENDS = base().spec.width, base().spec.ends
CONSTRAINTS = (
    Constraint("regex", r"([a-z]{1,12}[ ,.])*"),
    Constraint("regex", r"(.|\n)*"),
    Constraint("regex", "ab?"),
    Constraint("choices", choices=("cat", "caterpillar", "dog")),
    Constraint("grammar", 'start: "(" start ")" | WORD\nWORD: /[a-z]{1,4}/'),
    Constraint("json_schema", json.dumps({"type": "object"})),
)
SAMPLER = Sampler(WIDTH, str, TorchChooser().choose)
GREEDY = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.3, 0.7]),
        "presence_penalty": st.just(0.5),
        "logprobs": st.just(2),
        "min_tokens": st.sampled_from([1, 50]),
    },
)
TRUNCATED = st.sampled_from([{"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 5, "top_p": 0.9}])


@pytest.fixture(scope="module")
def maker() -> Any:
    made = MaskMaker()
    yield made
    made.close()


def row(follower: Follower | None, params: SamplingParams) -> Any:
    """At the beginning of its answer."""
    state = SamplingState(params, (1, 2, 3), ENDS)
    return SimpleNamespace(follower=follower, generated=0, sampling=state, job=SimpleNamespace(params=params))


def somewhere(constraint: Constraint, seed: int) -> Follower:
    """A few tokens into an answer that is not whole yet."""
    chance, follower = random.Random(seed), compiled(constraint).follower(forcing=bool(seed % 2))
    for _ in range(chance.randrange(6)):
        follower.forced()
        going = [token for token in range(WIDTH) if token not in ENDS and follower.permits(token)]
        if follower.complete or not going:
            return compiled(constraint).follower(forcing=False)
        follower.accept(chance.choice(going))
    return compiled(constraint).follower(forcing=False) if follower.complete else follower


def masked(rows: list[Any], logits: torch.Tensor) -> list[Sampled]:
    """What the rows get that have their masks before anything is chosen."""
    states = []
    for one in rows:
        one.follower.make_mask(keep_going=one.generated < one.job.params.min_tokens)
        states.append(SamplingState(one.job.params, (1, 2, 3), ENDS, one.follower.allowed.copy()))
    return SAMPLER.sample(logits, states)


def scores(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3


@given(
    rows=st.lists(st.tuples(st.sampled_from(CONSTRAINTS), GREEDY), min_size=1, max_size=4),
    seed=st.integers(0, 2**20),
)
def test_the_likeliest_is_that_of_the_mask(maker: MaskMaker, rows: list[Any], seed: int) -> None:
    made = [row(somewhere(constraint, seed), SamplingParams(**params)) for constraint, params in rows]
    logits = scores(seed, len(made))
    assert choose(made, logits, SAMPLER, maker) == masked(made, logits)


@given(constraint=st.sampled_from(CONSTRAINTS), said=TRUNCATED, seed=st.integers(0, 2**20))
def test_what_is_drawn_from_the_likeliest_few_has_its_mask_before(
    maker: MaskMaker, constraint: Constraint, said: dict[str, Any], seed: int
) -> None:
    made = [row(somewhere(constraint, seed), SamplingParams(temperature=1.0, seed=seed, **said))]
    logits = scores(seed, 1)
    with maker.made_meanwhile(made):
        pass
    assert choose(made, logits, SAMPLER, maker) == masked(made, logits)


@pytest.mark.parametrize("least", [0, 5])
def test_draws_have_the_distribution_of_what_is_allowed(maker: MaskMaker, least: int) -> None:
    """Whole as it is, the answer may end, or must go on where `least` says so."""
    follower = compiled(Constraint("regex", "[a-d]*")).follower()
    follower.make_mask(keep_going=least > 0)
    possible = allowed(follower)
    assert (ENDS[0] in possible) == (not least)
    logits = torch.zeros(1, WIDTH)
    logits[0, possible] = torch.linspace(4.0, 6.0, len(possible))  # half of all draws, or so, are refused
    expected = torch.softmax(logits[0, possible], -1).tolist()
    draws, counts = 1000, Counter[int]()
    for seed in range(draws):
        drawing = row(follower, SamplingParams(temperature=1.0, seed=seed, min_tokens=least))
        counts[choose([drawing], logits, SAMPLER, maker)[0].id] += 1
    assert set(counts) <= set(possible)
    distance = sum((counts[t] / draws - p) ** 2 / p for t, p in zip(possible, expected, strict=True)) * draws
    assert distance < 3 * len(possible) + 15  # chi-squared: 1 in 10,000 exceeds it, and seeds are fixed


def test_masks_are_made_only_of_what_is_refused(maker: MaskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[Follower] = []
    make_mask = Follower.make_mask
    monkeypatch.setattr(
        Follower, "make_mask", lambda self, going: made_of.append(self) or make_mask(self, going)
    )
    a, q = (base().tokens.tokenize_str(letter)[0] for letter in "aq")
    rows = [row(compiled(Constraint("regex", "[a-d]*")).follower(), SamplingParams()) for _ in range(3)]
    rows.append(row(None, SamplingParams()))
    logits = scores(0, 4)
    logits[[0, 1, 2, 3], [a, q, a, q]] = 99.0
    sampled = choose(rows, logits, SAMPLER, maker)
    assert made_of == [rows[1].follower]
    assert [sampled[0].id, sampled[2].id, sampled[3].id] == [a, a, q]
    assert sampled[1].id in allowed(rows[1].follower)


def test_a_mask_holds_for_one_token(maker: MaskMaker) -> None:
    refused = row(compiled(Constraint("regex", "[a-d]*")).follower(), SamplingParams())
    logits = scores(0, 1)
    logits[0, base().tokens.tokenize_str("q")[0]] = 99.0
    (sampled,) = choose([refused], logits, SAMPLER, maker)
    assert refused.sampling.allowed is not None
    refused.sampling.accept(sampled.id)
    assert refused.sampling.allowed is None


def test_a_row_whose_logits_are_broken_fails_without_being_looked_at(maker: MaskMaker) -> None:
    rows = [row(compiled(Constraint("regex", "[a-d]*")).follower(), SamplingParams()) for _ in range(2)]
    logits = scores(0, 2)
    logits[0, 7] = torch.nan
    assert [sampled.failed for sampled in choose(rows, logits, SAMPLER, maker)] == [True, False]
    assert rows[0].sampling.allowed is None
