"""The state of one answer in its grammar, and the masks of the tokens that may come next."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.engine.constrained.source import DEAD_END, TOO_COMPLEX, VocabularySpec, broke, refused
from router.engine.constrained.work import Work, counts
from router.errors import InvalidRequest
from router.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher


log = logging.getLogger(__name__)

_WORD = 32
WITH_RULES = ("json_schema", "grammar")


class GrammarState:
    """Where one answer is in its grammar: a function of the tokens it accepted, not of steps.

    Nothing raises: a grammar that turns out to be too complex, or a dead end, leaves `error`.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        constraint: Constraint,
        spec: VocabularySpec,
        work: Work,
        *,
        forcing: bool = True,
    ) -> None:
        """Without `forcing` every token is sampled, those that must come included."""
        self.error: InvalidRequest | None = None
        self.allowed: NDArray[np.int32] = np.zeros(-(-spec.width // _WORD), np.int32)  # a bit for each token
        self._matcher, self._constraint = matcher, constraint
        self._ends = [(end // _WORD, _all_but(end % _WORD)) for end in spec.ends]
        self._forcing, self._work, self._tokens = forcing, work, 0

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return self.error is None and self._matcher.is_stopped()

    @property
    def mask_first(self) -> bool:
        """Whether a mask has to be made before it is asked about a token, or goes on after one.

        The limits of work hold for masks. A token that is tried alone makes a row of the parser for each
        lexeme, without a limit, and only where there are no rules these rows are small.
        """
        return self._constraint.kind in WITH_RULES

    @property
    def cost(self) -> int:
        """As how many tokens of an answer its masks count."""
        return self._work.tokens

    def accept(self, token: int) -> None:
        """Go on after a token of the answer."""
        self._matcher.consume_token(token)
        self._tokens += 1
        self._note_error()

    def forced(self) -> list[int]:
        """The tokens that must come next, which it has accepted then; none where each is to be sampled."""
        if not self._forcing or self.error is not None:
            return []
        tokens = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
            self._tokens += len(tokens)
            self._note_error()
        return tokens

    def permits(self, token: int) -> bool:
        """Whether its mask has the token, at a hundredth of what a mask costs; True where it is at an error.

        As without `keep_going`: an end is in it wherever the answer is whole.
        """
        forced = self._matcher.compute_ff_tokens()
        return token == forced[0] if forced else self.follows(token)

    def follows(self, token: int) -> bool:
        """The same where more than one token can follow."""
        if self._matcher.validate_tokens([token]):
            return True
        self._note_error()
        return self.error is not None

    def make_mask(self, keep_going: bool) -> None:
        """Fill `allowed`: an end is in it if the answer is whole.

        With `keep_going` it is in it only if nothing else can follow, either. Ends the answer with an error
        where its masks were too much work.
        """
        self._matcher.unsafe_compute_mask_ptr(self.allowed.ctypes.data, self.allowed.nbytes)
        self._note_error()
        if self.error is None:
            self._work.add(counts(self._matcher))
            if self._work.too_much(self._tokens):
                self.give_up(TOO_COMPLEX)
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

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self._work.lexer.spoiled = True
            self.give_up(broke(self._matcher.get_error()))


def _all_but(bit: int) -> np.int32:
    return np.uint32(~(1 << bit) & 0xFFFFFFFF).view(np.int32)
