"""What each row of a step remembers of its sampling, and its next token.

Rows are independent: a row's choice depends on its own logits, parameters and seed only, and a
row whose logits are not finite fails alone. Choosing itself is an operation (`Ops.choose`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from router.engine.ops import FAILED, Choice, Chosen
from router.types import SamplingParams, TokenLogprob


class Sampled(NamedTuple):
    """What one row got; log-probabilities are natural and of the raw distribution."""

    id: int
    logprob: TokenLogprob | None = None

    @property
    def failed(self) -> bool:
        """Whether the row's logits were not finite, so that it has no token."""
        return self.id == FAILED


class SamplingState:
    """What one row's sampling remembers between steps."""

    __slots__ = ("_early", "_later", "_least", "_random", "allowed", "generated", "history", "params")

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Iterable[int],
        allowed: NDArray[np.int32] | None = None,
    ) -> None:
        """`allowed`: a bit for each token that may come next, ends too; it holds until that has come."""
        self.params = params
        self.allowed = allowed
        self.generated = 0
        self._random = random.Random(params.seed)
        repeats = params.repetition_penalty != 1.0
        counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.history = TokenHistory(prompt_ids if repeats else ()) if repeats or counts else None
        self._least = params.min_tokens
        self._later, self._early = _choice(params), _choice(params, tuple(eos_ids))

    @property
    def ending_suppressed(self) -> bool:
        """Whether min_tokens still forbids the end."""
        return self.allowed is None and self.generated < self._least

    @property
    def truncates(self) -> bool:
        """Whether a token is drawn from the likeliest only, which depend on all that may be chosen."""
        params = self.params
        return params.temperature != 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)

    def choice(self) -> Choice:
        """How the next token is chosen. Takes the next number of the row's own sequence, if it draws."""
        choice = self._early if self.ending_suppressed else self._later
        if self.allowed is not None:
            choice = choice._replace(allowed=self.allowed)
        if choice.temperature:
            choice = choice._replace(uniform=self._random.random())
        if self.history is not None:
            choice = choice._replace(seen=self.history.ids, counts=self.history.counts)
        return choice

    def accept(self, token_id: int) -> None:
        """Count a token of the answer."""
        self.generated += 1
        self.allowed = None
        if self.history is not None:
            self.history.add(token_id)


def _choice(params: SamplingParams, forbidden: tuple[int, ...] = ()) -> Choice:
    """What stays the same from token to token."""
    choice = Choice(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        forbidden=forbidden,
        logprobs=params.logprobs,
    )
    return _shared(choice)


@lru_cache(maxsize=256)
def _shared(choice: Choice) -> Choice:
    """One object for all that are equal, so that a step of many rows reads one."""
    return choice


class Sampler:
    """Samples one token per row."""

    def __init__(
        self,
        vocab_size: int,
        spell: Callable[[int], str],
        choose: Callable[[Tensor, Sequence[Choice]], list[Chosen]],
    ) -> None:
        """`spell` gives a token's text for log-probabilities, `choose` is that of the operations."""
        self.vocab_size = vocab_size
        self._spell, self._choose = spell, choose

    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled]:
        """The next token of each row; the caller records it with the state's `accept`.

        `logits` [rows, >= vocab_size], which stay as they are. A row fails if its logits hold NaN or +inf,
        or nothing is left to choose from.
        """
        if not states:
            return []
        if logits.shape[1] > self.vocab_size:
            logits = logits[:, : self.vocab_size]
        chosen = self._choose(logits, [state.choice() for state in states])
        return [Sampled(one.token, self._logprob(one) if one.top else None) for one in chosen]

    def _logprob(self, chosen: Chosen) -> TokenLogprob:
        top = tuple((self._spell(token), token, logprob) for token, logprob in chosen.top)
        return TokenLogprob(self._spell(chosen.token), chosen.token, chosen.logprob, top)


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
