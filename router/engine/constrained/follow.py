"""Where one answer is in its grammar: what may come next, what must, and whether it is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.engine.constrained.explain import DEAD_END, broke
from router.engine.constrained.source import refused
from router.engine.constrained.vocabulary import VocabularySpec
from router.errors import InvalidRequest
from router.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

_WORD = 32


class Follower:
    """Follows one answer. Its state is a function of the tokens it was told of, not of steps.

    Nothing raises: a grammar that turns out to be too complex, or a dead end, leaves `error`.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        constraint: Constraint,
        spec: VocabularySpec,
        *,
        forcing: bool = True,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `forcing` every token is sampled, those that must come included."""
        self.error: InvalidRequest | None = None
        self.allowed: NDArray[np.int32] = np.zeros(-(-spec.width // _WORD), np.int32)  # a bit for each token
        self._matcher, self._constraint = matcher, constraint
        self._ends = [(end // _WORD, _all_but(end % _WORD)) for end in spec.ends]
        self._forcing, self._on_error = forcing, on_error

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return self.error is None and self._matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Go on after a token of the answer."""
        self._matcher.consume_token(token)
        self._note_error()

    def forced(self) -> list[int]:
        """The tokens that must come next, which it has accepted then; none where each is to be sampled."""
        if not self._forcing or self.error is not None:
            return []
        tokens = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
            self._note_error()
        return tokens

    def permits(self, token: int) -> bool:
        """Whether its mask has the token, at a hundredth of what a mask costs; True where it is at an error.

        As without `keep_going`: an end is in it wherever the answer is whole.
        """
        forced = self._matcher.compute_ff_tokens()
        if forced:
            return token == forced[0]
        if self._matcher.validate_tokens([token]):
            return True
        self._note_error()
        return self.error is not None

    def make_mask(self, keep_going: bool) -> None:
        """Fill `allowed`: an end is in it if the answer is whole.

        With `keep_going` it is in it only if nothing else can follow, either. May run in another thread,
        beside nothing else of this follower.
        """
        self._matcher.unsafe_compute_mask_ptr(self.allowed.ctypes.data, self.allowed.nbytes)
        self._note_error()
        whole = self._matcher.is_accepting()
        if self.error is not None or (whole and not keep_going):
            return
        before = [(word, self.allowed[word]) for word, _ in self._ends]
        for word, others in self._ends:
            self.allowed[word] &= others
        if self.allowed.any():
            return
        if not whole:
            self.give_up(DEAD_END)
        for word, bits in before:
            self.allowed[word] = bits

    def give_up(self, why: str) -> None:
        """End it with an error."""
        self.error = refused(self._constraint, why)
        self._on_error()

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self.give_up(broke(self._matcher.get_error()))


def _all_but(bit: int) -> np.int32:
    return np.uint32(~(1 << bit) & 0xFFFFFFFF).view(np.int32)
