"""Choosing the next token of every row of a step.

Rows are independent: a row's choice depends on its own logits, parameters and seed only, and a
row whose logits are not finite fails alone. Plain greedy rows cost one argmax over the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from router.engine.draw import draw, truncate
from router.engine.penalties import TokenHistory, penalise
from router.types import SamplingParams, TokenLogprob

_FAILED = -1


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

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], eos_ids: Iterable[int]) -> None:
        self.params = params
        self.generated = 0
        self.eos_ids = tuple(eos_ids)
        self._random = random.Random(params.seed)
        repeats = params.repetition_penalty != 1.0
        counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.history = TokenHistory(prompt_ids if repeats else ()) if repeats or counts else None
        self._simple = params.temperature == 0 and self.history is None and params.logprobs == 0

    @property
    def plain(self) -> bool:
        """Whether the next token is just the most likely one."""
        return self._simple and not self.ending_suppressed

    @property
    def ending_suppressed(self) -> bool:
        """Whether min_tokens still forbids the end."""
        return self.generated < self.params.min_tokens

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
        self, vocab_size: int, device: torch.device | str, spell: Callable[[int], str] = lambda _: ""
    ) -> None:
        """`spell` gives a token's text for log-probabilities."""
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._spell = spell
        # Kept between steps: fresh memory for every step costs more than the sums done in it.
        self._buffers: dict[str, Tensor] = {}

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """The next token of each row; the caller records it with the state's `accept`.

        `logits` [rows, >= vocab_size], any float dtype, are not changed. A row fails if its logits
        hold NaN or +inf, or nothing is left to choose from.
        """
        logits = logits[:, : self.vocab_size]
        other = [i for i, state in enumerate(states) if not state.plain]
        if not other:
            return [Sampled(token) for token in greedy(self._float32(logits))]
        sampled = [Sampled(_FAILED)] * len(states)
        plain = [i for i, state in enumerate(states) if state.plain]
        if plain:
            for i, token in zip(plain, greedy(self._float32(_rows(logits, plain))), strict=True):
                sampled[i] = Sampled(token)
        chosen = [states[i] for i in other]
        scores = self._buffer("scores", len(other)).copy_(_rows(logits, other))
        for i, item in zip(other, self._shaped(scores, chosen), strict=True):
            sampled[i] = item
        return sampled

    def _shaped(self, scores: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """Rows that want more than the most likely token. `scores` [rows, vocab_size] are changed."""
        wanted = [row for row, state in enumerate(states) if state.params.logprobs]
        raw = {row: torch.log_softmax(scores[row], -1) for row in wanted}
        finite = torch.isfinite(scores.amax(-1)).tolist()
        penalise(scores, [(s.history, s.params) for s in states])
        _suppress_ending(scores, states)
        sampled = []
        for row, token in enumerate(self._choose(scores, states)):
            if token == _FAILED or not finite[row]:
                sampled.append(Sampled(_FAILED))
            else:
                logprobs = (
                    self._logprobs(raw[row], token, states[row].params.logprobs) if row in raw else None
                )
                sampled.append(Sampled(token, logprobs))
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
            for row, token in zip(cold, greedy(_rows(scores, cold)), strict=True):
                tokens[row] = token
        if warm:
            for row, token in zip(
                warm, self._drawn(_rows(scores, warm), [states[row] for row in warm]), strict=True
            ):
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

    def _float32(self, logits: Tensor) -> Tensor:
        if logits.dtype == torch.float32:
            return logits
        return self._buffer("scores", len(logits)).copy_(logits)


def greedy(logits: Tensor) -> list[int]:
    """The most likely token of each row of `logits` [rows, vocab] float32, the first of equals, or -1."""
    if logits.device.type == "cpu":  # numpy's argmax is one vectorised pass; torch's takes 9 times as long
        array = logits.numpy()
        best = array.argmax(-1)
        finite = np.isfinite(np.take_along_axis(array, best[:, None], -1)[:, 0])
        return [int(token) for token in np.where(finite, best, _FAILED)]
    top = logits.argmax(-1, keepdim=True)
    finite_rows = torch.isfinite(logits.gather(-1, top))
    return [int(token) for token in torch.where(finite_rows, top, _FAILED)[:, 0].tolist()]


def _suppress_ending(scores: Tensor, states: Sequence[SamplingState]) -> None:
    places = [(row, e) for row, s in enumerate(states) if s.ending_suppressed for e in s.eos_ids]
    if places:
        rows, ids = torch.tensor(places, device=scores.device).unbind(1)
        scores[rows, ids] = -torch.inf


def _rows(values: Tensor, rows: list[int]) -> Tensor:
    """The given rows, in order; a copy only if they are not all."""
    return values if len(rows) == len(values) else values[rows]
