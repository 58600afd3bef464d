"""Choosing tokens natively: the same as the twin, whatever the batch, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.native import NativeOps
from router.engine.ops import GREEDY, TokenChoice
from router.engine.sampling import truncate
from router.engine.torch_ops import TorchOps
from tests.engine.ops_cases import compiled, dtypes, examples

TORCH = TorchOps()
pytestmark = compiled


@dataclass(frozen=True)
class Cut:
    """A distribution and how it is truncated."""

    vocab: int
    spread: float
    top_k: int
    top_p: float
    min_p: float

    def logits(self, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return (torch.randn(1, self.vocab, generator=rng) * self.spread).to(dtype)

    def choice(self, uniform: float) -> TokenChoice:
        return TokenChoice(0.7, self.top_k, self.top_p, self.min_p, uniform)

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """[vocab] probabilities after truncation, by the twin."""
        probs = torch.softmax((logits.float() - logits.float().amax()) / 0.7, -1)
        truncate(probs, [self.choice(0.0)])
        return probs[0].double()


CUTS = [
    Cut(*case) for case in product([64, 1111], [0.01, 2.0, 30.0], [0, 3, 70], [0.05, 0.95, 1.0], [0.0, 0.1])
]


@pytest.mark.slow
@dtypes
def test_the_tokens_kept_are_those_of_the_twin(native: NativeOps, dtype: torch.dtype) -> None:
    """A number in the middle of a kept token's share draws it: one more or less would shift the shares."""
    for seed, cut in enumerate(CUTS):
        logits = cut.logits(seed, dtype)
        probs = cut.kept(logits)
        whole = probs.sum()
        tokens = torch.nonzero(probs > 1e-6 * whole)[:, 0]
        middles = ((probs.cumsum(0) - probs / 2) / whole)[tokens]
        chosen = native.choose(logits.expand(len(tokens), -1), [cut.choice(u) for u in middles.tolist()])
        assert [one.token for one in chosen] == tokens.tolist(), cut


@pytest.mark.slow
@dtypes
def test_draws_agree_with_the_twin_but_for_rounding(native: NativeOps, dtype: torch.dtype) -> None:
    count = differing = 0
    for seed, cut in enumerate(
        [Cut(1000, s, k, p, 0.0) for s in (0.1, 2.0, 6.0) for k in (0, 50) for p in (1.0, 0.9)]
    ):
        choices = [cut.choice(u) for u in np.random.default_rng(seed).random(400).tolist()]
        logits = cut.logits(seed, dtype).expand(len(choices), -1)
        pairs = zip(native.choose(logits, choices), TORCH.choose(logits, choices), strict=True)
        differing += sum(ours.token != theirs.token for ours, theirs in pairs)
        count += len(choices)
    assert differing <= max(1, 1e-4 * count)


choices = st.builds(
    TokenChoice,
    temperature=st.sampled_from([0.0, 1e-30, 0.3, 1.0, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 299, 300, 5000]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
    repetition=st.sampled_from([1.0, 0.5, 1.3]),
    frequency=st.floats(-2.0, 2.0),
    presence=st.floats(-2.0, 2.0),
    seen=st.just(np.array([3, 0, 299, 17])),
    counts=st.just(np.array([0, 1, 5, 2], np.float32)),
    forbidden=st.sampled_from([(), (5,), (0, 299)]),
    allowed=st.sampled_from([None, np.full(10, -1, np.int32), np.full(10, 0x5555AAAA, np.int32)]),
    logprobs=st.sampled_from([0, 1, 20, 500]),
    near=st.sampled_from([0, 0, 20]),
    proposed=st.sampled_from([-1, -1, 5, 299]),
)


@examples
@dtypes
@given(asked=st.lists(choices | st.just(GREEDY), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_a_row_is_the_same_alone_in_a_batch_and_on_any_threads(
    native: NativeOps, dtype: torch.dtype, asked: list[TokenChoice], seed: int
) -> None:
    logits = Cut(300, 3.0, 0, 1.0, 0.0).logits(seed, dtype).repeat(len(asked), 1)
    before = logits.clone()
    together = native.choose(logits, asked)
    assert torch.equal(logits, before)
    for row, choice in enumerate(asked):
        assert native.choose(logits[row : row + 1], [choice]) == [together[row]]


def test_rows_with_the_same_choice_are_chosen_like_rows_with_equal_ones(native: NativeOps) -> None:
    logits = torch.randn(6, 300)
    likeliest = logits.argmax(-1).tolist()
    choice, other = (
        TokenChoice(forbidden=(likeliest[0], likeliest[2]), logprobs=2),
        TokenChoice(0.9, uniform=0.5),
    )
    asked = [choice, choice, other, choice, choice, other]
    equal = [TokenChoice(*one) for one in asked]
    assert equal[0] is not equal[1]
    assert native.choose(logits, asked) == native.choose(logits, equal)


def test_many_rows_are_the_same_on_one_thread_and_on_several(native: NativeOps) -> None:
    logits = torch.randn(9, 30_000) * 3
    asked = [TokenChoice(1.0, top_p=0.9, uniform=i / 9, logprobs=3) for i in range(9)]
    before, answers = native.threads, []
    for threads in (1, 2, 3):
        native.threads = threads
        answers.append(native.choose(logits, asked))
    native.threads = before
    assert answers[0] == answers[1] == answers[2]


@examples
@dtypes
@given(choice=choices, seed=st.integers(0, 999))
def test_log_probabilities_and_adjusted_greedy_are_those_of_the_twin(
    native: NativeOps, dtype: torch.dtype, choice: TokenChoice, seed: int
) -> None:
    logits = torch.randperm(300, generator=torch.Generator().manual_seed(seed))[None].to(dtype) / 16
    choice = choice._replace(temperature=0.0)
    (ours,), (theirs,) = native.choose(logits, [choice]), TORCH.choose(logits, [choice])
    assert ours.token == theirs.token
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert [p for _, p in ours.top] == pytest.approx([p for _, p in theirs.top], abs=1e-5)
    if dtype == torch.float32:  # in bfloat16 some are equal, and topk has no order for them
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_of_equals_the_first_are_told(native: NativeOps) -> None:
    logits = torch.zeros(1, 100)
    logits[0, [90, 40]] = 1.0
    (chosen,) = native.choose(logits, [TokenChoice(logprobs=4)])
    assert [token for token, _ in chosen.top] == [40, 90, 0, 1]


@dtypes
@pytest.mark.parametrize("width", [1, 15, 16, 63, 64, 65, 511, 512, 513, 1500])
def test_draws_follow_the_distribution(native: NativeOps, dtype: torch.dtype, width: int) -> None:
    logits = torch.randn(1, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    count = 1000
    asked = [TokenChoice(1.0, uniform=(i + 0.5) / count) for i in range(count)]
    drawn = torch.tensor([one.token for one in native.choose(logits.expand(count, -1), asked)])
    frequencies = torch.bincount(drawn, minlength=width) / count
    torch.testing.assert_close(frequencies, torch.softmax(logits[0].float(), -1), atol=2 / count, rtol=0)
    assert torch.equal(drawn, drawn.sort().values)


@given(
    places=st.sets(st.integers(0, 699), min_size=1, max_size=3),
    uniform=st.floats(0, 1, exclude_max=True),
    top_k=st.sampled_from([0, 2, 500]),
    top_p=st.sampled_from([1.0, 0.999]),
    scale=st.sampled_from([1.0, 40.0, 1e30]),
)
@examples
def test_what_has_no_probability_is_never_drawn(
    native: NativeOps, places: set[int], uniform: float, top_k: int, top_p: float, scale: float
) -> None:
    logits = torch.full((2, 700), -torch.inf)
    logits[:, sorted(places)] = (torch.tensor([1.0, -1.0, 0.5]) * scale)[: len(places)]
    asked = [TokenChoice(1.0, top_k, top_p, 0.0, u) for u in (uniform, 1 - 2**-53)]
    assert {one.token for one in native.choose(logits, asked)} <= places


@dtypes
@pytest.mark.parametrize("value", [0.0, -3e38, 3e38])
def test_equals_are_all_kept(native: NativeOps, dtype: torch.dtype, value: float) -> None:
    logits = torch.full((1, 5000), value).to(dtype)
    for choice in (
        TokenChoice(0.5, top_k=3),
        TokenChoice(0.5, top_p=0.1),
        TokenChoice(0.5, min_p=1.0),
        TokenChoice(0.5),
    ):
        asked = [choice._replace(uniform=(token + 0.5) / 5000) for token in (0, 17, 2500, 4999)]
        assert [one.token for one in native.choose(logits.expand(4, -1), asked)] == [0, 17, 2500, 4999]


def test_values_that_hardly_differ_are_told_apart(native: NativeOps) -> None:
    """The search for the last one kept ends however near its values are, or however far apart."""
    for logits in (torch.arange(4096.0) * 2**-22, torch.arange(4096.0) * -0.02, torch.arange(4096.0) * 1e-30):
        for top_k, top_p in product((1, 100, 4000), (0.01, 0.5, 0.9999, 1.0)):
            ours, theirs = (
                ops.choose(logits[None], [TokenChoice(1.0, top_k, top_p, uniform=0.999)])[0].token
                for ops in (native, TORCH)
            )
            assert abs(ours - theirs) <= 1 + 1e-3 * top_k


@dtypes
def test_rows_may_lie_apart(native: NativeOps, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 330).to(dtype)
    asked = [
        GREEDY,
        TokenChoice(1.0, uniform=0.3),
        TokenChoice(1.0, top_p=0.5, uniform=0.7),
        TokenChoice(logprobs=2),
    ]
    assert native.choose(logits[:, :300], asked) == native.choose(logits[:, :300].contiguous(), asked)
    assert native.choose(logits[:0, :300], []) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": np.array([300]), "counts": np.ones(1, np.float32)}, "seen"),
        ({"seen": np.array([-1]), "counts": np.ones(1, np.float32)}, "seen"),
        ({"seen": np.array([1, 2]), "counts": np.ones(1, np.float32)}, "counts"),
        ({"forbidden": (300,)}, "forbidden"),
        ({"allowed": np.zeros(9, np.int32)}, "allowed"),
        ({"temperature": -1.0}, "range"),
        ({"temperature": float("nan")}, "range"),
        ({"uniform": 1.0}, "range"),
    ],
)
def test_choices_that_do_not_fit_are_refused(native: NativeOps, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        native.choose(torch.zeros(1, 300), [TokenChoice(**change)])


def test_logits_that_do_not_fit_are_refused(native: NativeOps) -> None:
    for logits in (torch.zeros(2, 5), torch.zeros(1, 5).double(), torch.zeros(5), torch.zeros(1, 0)):
        with pytest.raises(RuntimeError):
            native.choose(logits, [GREEDY])
    with pytest.raises(RuntimeError, match="rows"):
        native.choose(torch.zeros(5, 2).t(), [GREEDY] * 2)


@examples
@dtypes
@given(
    choice=choices,
    heat=st.sampled_from([0.3, 1.0, 50.0]),
    near=st.sampled_from([1, 20, 400]),
    seed=st.integers(0, 999),
)
def test_what_is_near_a_draw_is_that_of_the_twin(
    native: NativeOps, dtype: torch.dtype, choice: TokenChoice, heat: float, near: int, seed: int
) -> None:
    logits = torch.randperm(300, generator=torch.Generator().manual_seed(seed))[None].to(dtype) / 16
    choice = choice._replace(temperature=heat, near=near, proposed=-1)
    (ours,), (theirs,) = native.choose(logits, [choice]), TORCH.choose(logits, [choice])
    assert ours.token == theirs.token
    assert ours.lacks == pytest.approx(theirs.lacks, rel=1e-4, abs=1e-5)
    assert [share for _, share in ours.near] == pytest.approx([share for _, share in theirs.near], rel=1e-4)


@examples
@given(
    cut=st.sampled_from([cut for cut in CUTS if cut.vocab == 64]),
    kept=st.integers(0, 2**63 - 1),
    seed=st.integers(0, 999),
)
def test_a_draw_whose_neighbours_suffice_is_kept_with_the_mask(
    native: NativeOps, cut: Cut, kept: int, seed: int
) -> None:
    """And where they do not, the mask keeps it exactly if it may be drawn."""
    logits = cut.logits(seed)
    (drawn,) = native.choose(logits, [cut.choice(seed / 1000)._replace(near=64)])
    allowed = np.array([kept | 1 << drawn.token], np.uint64).view(np.int32)
    masked = torch.where(torch.from_numpy(_flags(allowed)), logits, -torch.inf)
    may_be = cut.kept(masked)[drawn.token] > 0
    found = sum(share for token, share in drawn.near if _flags(allowed)[token])
    if abs(found - drawn.lacks) < 1e-5:  # rounding decides
        return
    if found > drawn.lacks:
        assert may_be
    again = cut.choice(0.999)._replace(allowed=allowed, proposed=drawn.token)
    for ops in (native, TORCH):
        (one,) = ops.choose(logits, [again])
        assert one.token == drawn.token if may_be else one.token != drawn.token


def _flags(allowed: np.ndarray) -> np.ndarray:
    return np.unpackbits(allowed.view(np.uint8), bitorder="little").astype(bool)
