"""Choosing the next token of every row of a step.

Rows are independent: a row's choice depends on its own logits, parameters and seed only, and a
row whose logits are not finite fails alone. Plain greedy rows cost one argmax over the batch, constrained
ones too where the model does what their constraint asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.types import SamplingParams, TokenLogprob

_FAILED = -1  # in place of a token
_BLOCK = 32  # neighbouring tokens whose probabilities are looked at together
_WIDTH = 64  # a nucleus is seldom larger
_SHIFT, _BUCKETS = 16, (0x3F800000 >> 16) + 1  # leading bits of float32 numbers in [0, 1] order them


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one row got; log-probabilities are natural and of the raw distribution."""

    id: int
    logprob: TokenLogprob | None = None

    @property
    def failed(self) -> bool:
        """Whether the row's logits were not finite, so that it has no token."""
        return self.id == _FAILED


class SamplingState:
    """What one row's sampling remembers between steps."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Iterable[int],
        allowed: NDArray[np.int32] | None = None,
    ) -> None:
        """`allowed`: a bit for each token that may come next, written anew each time; ends, too."""
        self.params = params
        self.allowed = allowed
        self.generated = 0
        self.eos_ids = tuple(eos_ids)
        self._random = random.Random(params.seed)
        repeats = params.repetition_penalty != 1.0
        counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.history = TokenHistory(prompt_ids if repeats else ()) if repeats or counts else None
        self._simple = params.temperature == 0 and self.history is None and params.logprobs == 0

    @property
    def plain(self) -> bool:
        """Whether the next token is just the most likely one, of those that may not end the answer yet."""
        return self._simple

    @property
    def ending_suppressed(self) -> bool:
        """Whether min_tokens still forbids the end."""
        return self.allowed is None and self.generated < self.params.min_tokens

    def allows(self, token_id: int) -> bool:
        """Whether a constraint lets the token come next."""
        return self.allowed is None or bool(self.allowed[token_id // 32] >> token_id % 32 & 1)

    def uniform(self) -> float:
        """The next number in [0, 1) of this row's own sequence."""
        return self._random.random()

    def accept(self, token_id: int) -> None:
        """Count a token of the answer."""
        self.generated += 1
        if self.history is not None:
            self.history.add(token_id)


class Sampler:
    """Samples one token per row. Not thread-safe; the engine's thread owns it."""

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str,
        spell: Callable[[int], str],
        greedy: Callable[[Tensor], list[int]],
    ) -> None:
        """`spell` gives a token's text for log-probabilities, `greedy` is that of the operations."""
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._spell, self._greedy = spell, greedy
        # Kept between steps: fresh memory for every step costs more than the sums done in it.
        self._buffers: dict[str, Tensor] = {}

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """The next token of each row; the caller records it with the state's `accept`.

        `logits` [rows, >= vocab_size], any float dtype; those of plain rows may be changed. A row fails if
        its logits hold NaN or +inf, or nothing is left to choose from.
        """
        logits = logits[:, : self.vocab_size]
        sampled = [Sampled(_FAILED)] * len(states)
        plain = [i for i, state in enumerate(states) if state.plain]
        if plain:
            likely = _take_rows(logits, plain)
            _suppress_ending(likely, [states[i] for i in plain])
            for i, token in zip(plain, self._greedy(likely), strict=True):
                sampled[i] = Sampled(token)
        # The likeliest of all tokens, where a constraint allows it, is the likeliest of those it allows.
        other = [i for i, s in enumerate(states) if not s.plain or not s.allows(sampled[i].id)]
        if not other:
            return sampled
        chosen = [states[i] for i in other]
        scores = self._buffer("scores", len(other)).copy_(_take_rows(logits, other))
        for i, item in zip(other, self._shaped(scores, chosen), strict=True):
            sampled[i] = item
        return sampled

    def _shaped(self, scores: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """Rows that want more than the most likely token. `scores` [rows, vocab_size] are changed."""
        wanted = [row for row, state in enumerate(states) if state.params.logprobs]
        raw = {row: torch.log_softmax(scores[row], -1) for row in wanted}
        finite = torch.isfinite(scores.amax(-1)).tolist()
        forbid(scores, [s.allowed for s in states])
        penalise(scores, [(s.history, s.params) for s in states])
        _suppress_ending(scores, states)
        sampled = []
        for row, token in enumerate(self._choose(scores, states)):
            if token == _FAILED or not finite[row]:
                sampled.append(Sampled(_FAILED))
            else:
                count = states[row].params.logprobs
                sampled.append(Sampled(token, self._logprobs(raw[row], token, count) if count else None))
        return sampled

    def _logprobs(self, raw: Tensor, token: int, count: int) -> TokenLogprob:
        values, ids = torch.topk(raw, min(count, raw.shape[-1]))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple((self._spell(i), int(i), float(value)) for i, value in pairs)
        return TokenLogprob(self._spell(token), token, float(raw[token]), top)

    def _choose(self, scores: Tensor, states: Sequence[SamplingState]) -> list[int]:
        tokens = [_FAILED] * len(states)
        cold = [row for row, s in enumerate(states) if s.params.temperature == 0]
        warm = [row for row, s in enumerate(states) if s.params.temperature != 0]
        if cold:
            for row, token in zip(cold, self._greedy(_take_rows(scores, cold)), strict=True):
                tokens[row] = token
        if warm:
            drawn = self._drawn(_take_rows(scores, warm), [states[row] for row in warm])
            for row, token in zip(warm, drawn, strict=True):
                tokens[row] = token
        return tokens

    def _drawn(self, scores: Tensor, states: Sequence[SamplingState]) -> list[int]:
        """Changes `scores`."""
        params = [state.params for state in states]
        heat = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=scores.device)
        probs = self._buffer("probs", len(states))
        best = scores.amax(-1, keepdim=True)
        finite = torch.isfinite(best[:, 0]).tolist()
        for row, fine in enumerate(finite):
            if not fine:  # its neighbours go on with something harmless in its place
                scores[row], best[row] = 0.0, 0.0
        # The largest score becomes 0 first, so that no temperature, however small, overflows.
        torch.softmax(scores.sub_(best).div_(heat[:, None]), -1, out=probs)
        truncate(probs, params)
        tokens = draw(probs, [state.uniform() for state in states])
        return [token if fine else _FAILED for token, fine in zip(tokens, finite, strict=True)]

    def _buffer(self, name: str, rows: int) -> Tensor:
        """[rows, vocab_size] float32 of undefined content."""
        held = self._buffers.get(name)
        if held is None or len(held) < rows:
            held = self._buffers[name] = torch.empty(rows, self.vocab_size, device=self.device)
        return held[:rows]


def forbid(scores: Tensor, allowed: Sequence[NDArray[np.int32] | None]) -> None:
    """Set to -inf, in place, what the bits of a row of `scores` [rows, vocab] float32 leave out."""
    vocab = scores.shape[-1]
    for row, bits in enumerate(allowed):
        if bits is None:
            continue
        left_out = np.unpackbits((~bits).view(np.uint8), count=vocab, bitorder="little").view(np.bool_)
        if scores.device.type == "cpu":  # torch takes several times as long
            np.putmask(scores[row].numpy(), left_out, -np.inf)
        else:
            scores[row].masked_fill_(torch.from_numpy(left_out).to(scores.device), -torch.inf)


def _suppress_ending(scores: Tensor, states: Sequence[SamplingState]) -> None:
    places = [(row, e) for row, s in enumerate(states) if s.ending_suppressed for e in s.eos_ids]
    if places:
        rows, ids = torch.tensor(places, device=scores.device).unbind(1)
        scores[rows, ids] = -torch.inf


def _take_rows(values: Tensor, rows: list[int]) -> Tensor:
    """The given rows, in order; a copy only if they are not all."""
    return values if len(rows) == len(values) else values[rows]


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


def penalise(scores: Tensor, rows: Sequence[tuple[TokenHistory | None, SamplingParams]]) -> None:
    """Apply each row's penalties to `scores` [rows, vocab] float32, in place.

    Repetition (CTRL, Keskar et al. 2019): seen tokens' positive scores are divided by it, negative
    ones multiplied. Frequency and presence: subtracted per occurrence, and once, in the answer.
    """
    seen = [(row, h, p) for row, (h, p) in enumerate(rows) if h is not None and len(h.ids)]
    if not seen:
        return
    lengths = [len(history.ids) for _, history, _ in seen]

    def spread(values: Sequence[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), lengths)).to(scores.device)

    row = torch.from_numpy(np.repeat([r for r, _, _ in seen], lengths)).to(scores.device)
    ids = torch.from_numpy(np.concatenate([h.ids for _, h, _ in seen])).to(scores.device)
    counts = torch.from_numpy(np.concatenate([h.counts for _, h, _ in seen])).to(scores.device)
    repetition = spread([p.repetition_penalty for _, _, p in seen])
    value = scores[row, ids]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= counts * spread([p.frequency_penalty for _, _, p in seen])
    value -= (counts > 0) * spread([p.presence_penalty for _, _, p in seen])
    scores[row, ids] = value


# -- Truncating distributions and drawing from them, row by row and without sorting a vocabulary.
#
# Two levels do it, blocks of neighbouring tokens first: the largest probabilities lie in the blocks
# with the largest maxima, and a running sum over blocks leads to the block to look into. Where the
# largest few are not enough, a histogram over the leading bits of the probabilities is.


def truncate(probs: Tensor, params: Sequence[SamplingParams]) -> None:
    """Set to 0 what each row of `probs` [rows, vocab] may not draw, in place.

    top_k, then top_p of what is left (nucleus: Holtzman et al. 2019), then min_p (Nguyen et al.
    2024), relative to the most likely token. Equals of the last token kept are kept too, so the
    result does not depend on how a sort orders them.
    """
    cut = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if not cut:
        return
    smallest = _smallest_kept(probs, params)
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


def _smallest_kept(probs: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """[rows] smallest probability each row may draw."""
    blocks, vocab = _in_blocks(probs), probs.shape[-1]
    smallest = blocks.amax((1, 2)) * torch.tensor([p.min_p for p in params], device=probs.device)
    limits = [p.top_k if 0 < p.top_k < vocab else 0 for p in params]
    rows = [row for row, p in enumerate(params) if p.top_p < 1 or limits[row]]
    if not rows:
        return smallest
    top_k, top_p = [limits[row] for row in rows], [params[row].top_p for row in rows]
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
