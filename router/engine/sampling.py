"""Choosing each row's next token: what a row remembers, and the choice itself in plain torch.

Rows are independent: a row's choice depends on its own logits, parameters and seed only, and a row whose
logits are not finite fails alone. `TorchChooser` chooses on any device and in any dtype, and is the oracle of
the native code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.engine.ops import FAILED, GREEDY, ChosenToken, TokenChoice
from router.types import LogitBias, SamplingParams, TokenLogprob


class SamplingState:
    """What one row's sampling remembers between steps."""

    __slots__ = (
        "_early",
        "_later",
        "_least",
        "_masked",
        "_random",
        "_redraws",
        "_uniform",
        "allowed",
        "bias",
        "generated",
        "history",
        "needs_mask",
        "params",
        "proposed",
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Iterable[int],
        allowed: NDArray[np.int32] | None = None,
        *,
        constrained: bool = False,
    ) -> None:
        """`allowed`: a bit for each token that may come next, ends too; it holds until that has come.
        `constrained`: a grammar is asked about each token.
        """
        self.params = params
        self.proposed = -1  # drawn already, and kept if `allowed` and what is drawn from have it
        self.bias = _bias(params.logit_bias)
        self.allowed = allowed
        self.generated = 0
        self._random = random.Random(params.seed)
        self._uniform, self._redraws = 0.0, True  # the last number, and whether the next choice gets another
        repeats = params.repetition_penalty != 1.0
        counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.history = TokenHistory(prompt_ids if repeats else ()) if repeats or counts else None
        self._least = params.min_tokens
        truncates = _truncates(params)
        # Whether a constrained row has its mask made before anything is chosen.
        self.needs_mask = truncates and bool(params.logprobs or params.logit_bias)
        near = NEAR if constrained and truncates and not self.needs_mask else 0
        self._masked = _choice(params)
        self._later = _choice(params, near=near)
        self._early = _choice(params, tuple(eos_ids), near)

    def choice(self) -> TokenChoice:
        """How the next token is chosen. Takes the next number of the row's own sequence, if it draws."""
        choice = self._later
        if self.allowed is not None:
            choice = self._masked._replace(allowed=self.allowed, proposed=self.proposed)
        elif self.generated < self._least:  # min_tokens still forbids the end
            choice = self._early
        if choice.temperature:
            if self._redraws:
                self._uniform = self._random.random()
            self._redraws = True
            choice = choice._replace(uniform=self._uniform)
        if self.history is not None:
            choice = choice._replace(seen=self.history.ids, counts=self.history.counts)
        return choice

    def undo(self) -> None:
        """The last choice does not count: the next one is made with the same number."""
        self._redraws = False

    def accept(self, token_id: int) -> None:
        """Count a token of the answer."""
        self.generated += 1
        self.allowed, self.proposed = None, -1
        if self.history is not None:
            self.history.add(token_id)


def _bias(biases: LogitBias) -> tuple[Tensor, Tensor]:
    """[biases] token ids, and what is added to their logits."""
    if not biases:
        return NO_BIAS
    tokens, values = zip(*biases, strict=True)
    return torch.tensor(tokens), torch.tensor(values, dtype=torch.float32)


NO_BIAS = (torch.empty(0, dtype=torch.long), torch.empty(0))


NEAR = 128  # neighbours of a token that a grammar is asked about at most


def _truncates(params: SamplingParams) -> bool:
    """Whether a token is drawn from the likeliest only, which depend on all that may be chosen."""
    return params.temperature != 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _choice(params: SamplingParams, forbidden: tuple[int, ...] = (), near: int = 0) -> TokenChoice:
    """What stays the same from token to token."""
    choice = TokenChoice(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        forbidden=forbidden,
        logprobs=params.logprobs,
        near=near,
    )
    return _shared(choice)


@lru_cache(maxsize=256)
def _shared(choice: TokenChoice) -> TokenChoice:
    """One object for all that are equal, so that a step of many rows reads one."""
    return choice


class Sampler:
    """Samples one token per row."""

    def __init__(
        self,
        vocab_size: int,
        spell: Callable[[int, float, Sequence[tuple[int, float]]], TokenLogprob],
        choose: Callable[[Tensor, Sequence[TokenChoice]], list[ChosenToken]],
    ) -> None:
        """`spell` adds texts to log-probabilities of tokens, `choose` is that of the operations."""
        self.vocab_size = vocab_size
        self._spell, self._choose = spell, choose

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[ChosenToken]:
        """The next token of each row; the caller records it with the state's `accept`.

        `logits` [rows, >= vocab_size], which stay as they are. A row fails if its logits hold NaN or +inf,
        or nothing is left to choose from.
        """
        if not states:
            return []
        if logits.shape[1] > self.vocab_size:
            logits = logits[:, : self.vocab_size]
        biased = [row for row, state in enumerate(states) if state.bias is not NO_BIAS]
        choices = [state.choice() for state in states]
        if not biased:
            return self._choose(logits, choices)
        chosen = [ChosenToken(FAILED)] * len(states)
        plain = [row for row in range(len(states)) if states[row].bias is NO_BIAS]
        if plain:
            found = self._choose(logits[plain], [choices[row] for row in plain])
            for row, token in zip(plain, found, strict=True):
                chosen[row] = token
        for row, token in zip(biased, self._biased(logits, biased, states, choices), strict=True):
            chosen[row] = token
        return chosen

    def _biased(
        self,
        logits: Tensor,
        rows: list[int],
        states: Sequence[SamplingState],
        choices: Sequence[TokenChoice],
    ) -> Iterator[ChosenToken]:
        """Tokens of rows with biases, which are added in float32. Log-probabilities are those without."""
        scores = logits[rows].float()
        for place, row in enumerate(rows):
            tokens, values = states[row].bias
            scores[place, tokens.to(scores.device)] += values.to(scores.device)
        silent = [choices[row]._replace(logprobs=0) for row in rows]
        for row, one in zip(rows, self._choose(scores, silent), strict=True):
            count = choices[row].logprobs
            raw = torch.log_softmax(logits[row].float(), -1) if count and not one.failed else None
            yield _with_logprobs(one, raw, count)

    def logprob(self, chosen: ChosenToken) -> TokenLogprob | None:
        """The log-probabilities of a token with their texts, if its request wants any."""
        if not chosen.top:
            return None
        return self._spell(chosen.token, chosen.logprob, chosen.top)


class TokenHistory:
    """Distinct tokens of a row, each with how often the answer has it (0: only the prompt does)."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._size = 0
        self._place: dict[int, int] = {}
        self._ids: NDArray[np.int64] = np.empty(64, np.int64)
        self._counts: NDArray[np.float32] = np.empty(64, np.float32)
        for token_id in dict.fromkeys(prompt_ids):
            self._append(token_id, 0.0)

    def add(self, token_id: int) -> None:
        """Count one token of the answer."""
        place = self._place.get(token_id)
        if place is None:
            self._append(token_id, 1.0)
        else:
            self._counts[place] += 1.0

    @property
    def ids(self) -> NDArray[np.int64]:
        """[distinct] token ids."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """[distinct] occurrences in the answer."""
        return self._counts[: self._size]

    def _append(self, token_id: int, count: float) -> None:
        if self._size == len(self._ids):
            self._ids = np.resize(self._ids, 2 * self._size)
            self._counts = np.resize(self._counts, 2 * self._size)
        self._ids[self._size], self._counts[self._size] = token_id, count
        self._place[token_id] = self._size
        self._size += 1


_BLOCK = 32  # neighbouring tokens whose probabilities are looked at together
_WIDTH = 64  # a nucleus is seldom larger
_SHIFT, _BUCKETS = 16, (0x3F800000 >> 16) + 1  # leading bits of float32 numbers in [0, 1] order them


class TorchChooser:
    """`TorchOps.choose`. Plain rows cost one argmax; not thread-safe."""

    def __init__(self) -> None:
        # Kept between steps: fresh memory for every step costs more than the sums done in it.
        self._buffers: dict[str, Tensor] = {}

    def choose(self, logits: Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        """A token for each row of logits [rows, vocab], any float dtype."""
        chosen = [ChosenToken(FAILED)] * len(choices)
        simple = [row for row, choice in enumerate(choices) if choice.likeliest]
        other = [row for row, choice in enumerate(choices) if not choice.likeliest]
        if simple:
            for row, token in zip(simple, greedy(_take_rows(logits, simple)), strict=True):
                # The likeliest of all tokens, if it may be chosen, is the likeliest of those that may.
                if token == FAILED or choices[row].permits(token):
                    chosen[row] = ChosenToken(token)
                else:
                    other.append(row)
        if other:
            scores = self._buffer("scores", len(other), logits).copy_(_take_rows(logits, other))
            for row, one in zip(other, self._shaped(scores, [choices[row] for row in other]), strict=True):
                chosen[row] = one
        return chosen

    def _shaped(self, scores: Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        """Rows that want more than the most likely token. `scores` [rows, vocab] float32 are changed."""
        raw = {row: torch.log_softmax(scores[row], -1) for row, c in enumerate(choices) if c.logprobs}
        finite = torch.isfinite(scores.amax(-1)).tolist()
        adjust(scores, choices)
        tokens = self._tokens(scores, choices)
        return [
            _with_logprobs(one, raw.get(row), choices[row].logprobs) if finite[row] else ChosenToken(FAILED)
            for row, one in enumerate(tokens)
        ]

    def _tokens(self, scores: Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        tokens = [ChosenToken(FAILED)] * len(choices)
        cold = [row for row, choice in enumerate(choices) if choice.temperature == 0]
        warm = [row for row, choice in enumerate(choices) if choice.temperature != 0]
        if cold:
            for row, token in zip(cold, greedy(_take_rows(scores, cold)), strict=True):
                tokens[row] = ChosenToken(token)
        if warm:
            drawn = self._drawn(_take_rows(scores, warm), [choices[row] for row in warm])
            for row, one in zip(warm, drawn, strict=True):
                tokens[row] = one
        return tokens

    def _drawn(self, scores: Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        """Changes `scores`."""
        heat = torch.tensor([c.temperature for c in choices], dtype=torch.float32, device=scores.device)
        probs = self._buffer("probs", len(choices), scores)
        best = scores.amax(-1, keepdim=True)
        finite = torch.isfinite(best[:, 0]).tolist()
        for row, fine in enumerate(finite):
            if not fine:  # its neighbours go on with something harmless in its place
                scores[row], best[row] = 0.0, 0.0
        # The largest score becomes 0 first, so that no temperature, however small, overflows.
        torch.softmax(scores.sub_(best).div_(heat[:, None]), -1, out=probs)
        truncate(probs, [GREEDY if choice.near else choice for choice in choices])
        tokens = draw(probs, [choice.uniform for choice in choices])
        for row, choice in enumerate(choices):
            if choice.proposed >= 0 and probs[row, choice.proposed] > 0:
                tokens[row] = choice.proposed
        chosen = [ChosenToken(token if fine else FAILED) for token, fine in zip(tokens, finite, strict=True)]
        for row, choice in enumerate(choices):
            if choice.near and finite[row]:
                chosen[row] = _look_near(chosen[row], probs[row], choice)
        return chosen

    def _buffer(self, name: str, rows: int, like: Tensor) -> Tensor:
        """[rows, vocab] float32 of undefined content, where and as wide as `like` is."""
        held = self._buffers.get(name)
        if held is None or len(held) < rows or held.shape[1] != like.shape[1] or held.device != like.device:
            held = self._buffers[name] = torch.empty(rows, like.shape[1], device=like.device)
        return held[:rows]


def greedy(logits: Tensor) -> list[int]:
    """The likeliest of each row, the first of equals; FAILED with a NaN or if the largest is not finite."""
    if logits.device.type == "cpu":  # numpy's argmax is one vectorised pass; torch's takes 9 times as long
        array = logits.float().numpy()
        best = array.argmax(-1)
        finite = np.isfinite(np.take_along_axis(array, best[:, None], -1)[:, 0])
        return [int(token) for token in np.where(finite, best, FAILED)]
    top = logits.argmax(-1, keepdim=True)
    finite_rows = torch.isfinite(logits.gather(-1, top))
    return [int(token) for token in torch.where(finite_rows, top, FAILED)[:, 0].tolist()]


def adjust(scores: Tensor, choices: Sequence[TokenChoice]) -> None:
    """Apply penalties to `scores` [rows, vocab] float32 and leave out what may not be chosen, in place."""
    for row, choice in enumerate(choices):
        if choice.allowed is not None:
            scores[row].masked_fill_(_left_out(choice.allowed, scores), -torch.inf)
    _penalise(scores, choices)
    places = [(row, token) for row, choice in enumerate(choices) for token in choice.forbidden]
    if places:
        rows, ids = torch.tensor(places, device=scores.device).unbind(1)
        scores[rows, ids] = -torch.inf


def _left_out(allowed: NDArray[np.int32], scores: Tensor) -> Tensor:
    bits = np.unpackbits((~allowed).view(np.uint8), count=scores.shape[-1], bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).to(scores.device)


def _penalise(scores: Tensor, choices: Sequence[TokenChoice]) -> None:
    seen = [(row, c, c.seen, c.counts) for row, c in enumerate(choices) if c.seen is not None and len(c.seen)]
    if not seen:
        return
    lengths = [len(tokens) for _, _, tokens, _ in seen]

    def spread(values: Sequence[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), lengths)).to(scores.device)

    row = torch.from_numpy(np.repeat([r for r, *_ in seen], lengths)).to(scores.device)
    ids = torch.from_numpy(np.concatenate([tokens for _, _, tokens, _ in seen])).to(scores.device)
    counts = torch.from_numpy(np.concatenate([c for *_, c in seen if c is not None])).to(scores.device)
    repetition = spread([c.repetition for _, c, _, _ in seen])
    value = scores[row, ids]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= counts * spread([c.frequency for _, c, _, _ in seen])
    value -= (counts > 0) * spread([c.presence for _, c, _, _ in seen])
    scores[row, ids] = value


def _with_logprobs(one: ChosenToken, raw: Tensor | None, count: int) -> ChosenToken:
    """The token, with the likeliest `count` of the log-probabilities `raw` [vocab], if given."""
    if one.failed or raw is None:
        return one
    values, ids = torch.topk(raw, min(count, raw.shape[-1]))
    top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return one._replace(logprob=float(raw[one.token]), top=top)


def _look_near(one: ChosenToken, probs: Tensor, choice: TokenChoice) -> ChosenToken:
    """A token drawn from all `probs` [vocab], with what its `TokenChoice` has to keep it."""
    own, count, unknown = probs[one.token], choice.near, one._replace(lacks=math.inf)
    if choice.top_k:
        count = min(count, choice.top_k - 1 - int((probs > own).sum()))
    if count < 0 or own < choice.min_p * probs.amax():
        return unknown
    if choice.top_p >= 1:
        return one
    above = float(torch.where(probs > own, probs, 0).double().sum())
    mass = float(probs.double().sum())
    lacks = (above * (1 / choice.top_p - 1) - float(own)) / mass
    if lacks < 0:
        return one._replace(lacks=lacks)
    others = torch.where(probs > own, -1.0, probs)
    others[one.token] = -1.0
    shares, ids = torch.sort(others, descending=True, stable=True)
    shares = shares[:count]
    shares = shares[shares >= 0] / mass
    if float(shares.double().sum()) <= lacks:
        return unknown
    return one._replace(lacks=lacks, near=list(zip(ids.tolist(), shares.tolist(), strict=False)))


def _take_rows(values: Tensor, rows: list[int]) -> Tensor:
    """The given rows, in order; a copy only if they are not all."""
    return values if rows == list(range(len(values))) else values[rows]


def truncate(probs: Tensor, choices: Sequence[TokenChoice]) -> None:
    """Set to 0, in place, what each row of `probs` [rows, vocab] may not draw by its `TokenChoice`."""
    cut = [row for row, p in enumerate(choices) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if not cut:
        return
    smallest = _smallest_kept(probs, choices)
    below = torch.nextafter(smallest, torch.zeros_like(smallest)).tolist()
    for row in cut:
        torch.threshold_(probs[row], below[row], 0.0)  # broadcasting is 20 times slower


def draw(probs: Tensor, uniforms: Sequence[float]) -> list[int]:
    """One index per row of `probs` [rows, vocab] (need not sum to 1), by inverting the distribution.

    The index is a function of the row and of its number in [0, 1) alone.
    """
    blocks = _in_blocks(probs)
    mass = blocks.sum(-1).double().cumsum(-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=probs.device) * mass[:, -1]
    block, before = _find_place(mass, target)
    inside = blocks[torch.arange(len(blocks), device=probs.device), block].double().cumsum(-1)
    place, _ = _find_place(inside, target - before)
    indices: list[int] = (block * _BLOCK + place).tolist()
    return indices


def _smallest_kept(probs: Tensor, choices: Sequence[TokenChoice]) -> Tensor:
    """[rows] smallest probability each row may draw."""
    blocks, vocab = _in_blocks(probs), probs.shape[-1]
    smallest = blocks.amax((1, 2)) * torch.tensor([p.min_p for p in choices], device=probs.device)
    limits = [p.top_k if 0 < p.top_k < vocab else 0 for p in choices]
    rows = [row for row, p in enumerate(choices) if p.top_p < 1 or limits[row]]
    if not rows:
        return smallest
    top_k, top_p = [limits[row] for row in rows], [choices[row].top_p for row in rows]
    values, known = _cut_by_best(_largest(blocks if len(rows) == len(blocks) else blocks[rows]), top_k, top_p)
    for i, row in enumerate(rows):
        value = values[i] if known[i] else _cut_by_histogram(probs[row], top_k[i], top_p[i])
        smallest[row] = torch.maximum(smallest[row], value)
    return smallest


def _largest(blocks: Tensor) -> Tensor:
    """[rows, _WIDTH or all] largest values of `blocks` [rows, blocks, _BLOCK], descending."""
    if blocks.shape[1] > _WIDTH:
        rich = blocks.amax(-1).topk(_WIDTH, sorted=False).indices
        blocks = blocks.gather(1, rich[:, :, None].expand(-1, -1, _BLOCK))
    flat = blocks.flatten(1)
    return flat.topk(min(_WIDTH, flat.shape[-1])).values


def _cut_by_best(best: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> tuple[Tensor, list[bool]]:
    """Smallest kept probability of each row, from its `best` [rows, width], descending.

    Also says for which rows these were enough to know; `top_k` 0 is no limit.
    """
    width = best.shape[-1]
    mass = best.double().cumsum(-1)
    kept = torch.tensor([min(k, width) or width for k in top_k], device=best.device)
    limited = torch.tensor([k > 0 for k in top_k], device=best.device)
    total = torch.where(limited, mass.gather(-1, kept[:, None] - 1)[:, 0], 1.0)
    nucleus = torch.tensor(top_p, dtype=torch.float64, device=best.device) * total
    size = torch.searchsorted(mass, nucleus[:, None])[:, 0] + 1  # the fewest with that mass
    # Without top_p all of top_k: mass that rounding loses must not end it before.
    size = torch.where(torch.tensor([p < 1 for p in top_p], device=best.device), size, kept)
    reached = (size <= kept).tolist()
    values = best.gather(-1, torch.minimum(size, kept)[:, None] - 1)[:, 0]
    return values, [k <= width and bool(r) for k, r in zip(top_k, reached, strict=True)]


def _cut_by_histogram(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """The same for one row [vocab] whatever its shape, in a few passes over it."""
    bucket = probs.view(torch.int32) >> _SHIFT
    mass = torch.bincount(bucket, weights=probs, minlength=_BUCKETS).double().flip(0).cumsum(0)
    smallest, total = probs.new_zeros(()), torch.ones((), dtype=torch.float64, device=probs.device)

    def members(place: int) -> Tensor:
        return probs[bucket == _BUCKETS - 1 - place].sort(descending=True).values

    def before(running: Tensor, place: int) -> Tensor:
        return running[place - 1] if place else running.new_zeros(())

    if top_k:
        count = torch.bincount(bucket, minlength=_BUCKETS).flip(0).cumsum(0)
        place = int(torch.searchsorted(count, top_k))
        last = top_k - int(before(count, place))
        smallest = members(place)[last - 1]
        total = before(mass, place) + members(place)[:last].double().sum()
    place = int(torch.searchsorted(mass, top_p * total))
    if top_p < 1 and place < _BUCKETS:
        inside = members(place)
        size = torch.searchsorted(inside.double().cumsum(0), top_p * total - before(mass, place))
        smallest = torch.maximum(smallest, inside[size.clamp(max=len(inside) - 1)])
    return smallest


def _find_place(mass: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """First place of each row whose running `mass` exceeds `target`, and the mass before it.

    Such a place has mass of its own; rounding never leads past the last one.
    """
    last = torch.nextafter(mass[:, -1], torch.zeros_like(target))
    place = torch.searchsorted(mass, torch.minimum(target, last)[:, None], right=True)
    before = mass.gather(-1, (place - 1).clamp_(min=0))
    return place[:, 0], torch.where(place > 0, before, 0.0)[:, 0]


def _in_blocks(probs: Tensor) -> Tensor:
    """[rows, blocks, _BLOCK], padded with zeros."""
    padding = -probs.shape[-1] % _BLOCK
    padded = torch.nn.functional.pad(probs, (0, padding)) if padding else probs
    return padded.view(len(probs), -1, _BLOCK)
