"""Choosing the next token of a constrained row.

A grammar with rules makes its mask first, since a question about a single token has no bound there.

Elsewhere a mask costs as much as a hundred such questions. So it is made only where a few of these do not
settle what the next token is. The result is as if it had been chosen from the tokens of the mask. The
likeliest of all, if it is allowed, is the likeliest of those that are. A draw from all that is thrown away
and made again until it may be drawn has the distribution of those that may (rejection sampling).

Which tokens may be drawn depends on the mask where only the likeliest few are. But a token surely is one of
them if what is likelier has less than `top_p` of the mass of that, of itself, and of a few others that the
grammar allows: the mask only adds to these. So the grammar is asked about its neighbours. If that does
not settle it, the mask is made, and the same draw is kept or made again from those that may be drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from router.engine.constrained.state import GrammarState
from router.engine.ops import ChosenToken
from router.engine.sampling import Sampler

if TYPE_CHECKING:
    from router.engine.rows import AnswerRow

log = logging.getLogger(__name__)

_DRAWS = 3  # from all tokens, before a mask is made


def make_masks(rows: Sequence[AnswerRow]) -> None:
    """Give constrained rows their masks. One that is too much work fails its row, the others go on."""
    for row in rows:
        if row.grammar is None:
            continue
        try:
            row.grammar.make_mask(keep_going=row.generated < row.job.params.min_tokens)
        except Exception:
            log.exception("a mask cannot be made")
            row.grammar.give_up("cannot be followed any further")
        row.sampling.allowed = row.grammar.allowed


def sample_rows(rows: Sequence[AnswerRow], logits: Tensor, sampler: Sampler) -> list[ChosenToken]:
    """The next token of each row of logits [rows, >= vocabulary], constrained or not."""
    constrained = [at for at, row in enumerate(rows) if row.grammar is not None]
    make_masks([row for row in rows if row.grammar and (row.grammar.mask_first or row.sampling.needs_mask)])
    chosen = sampler.sample(logits, [row.sampling for row in rows])
    unsettled = []
    for at in constrained:
        if rows[at].sampling.allowed is None:
            settled = _settled(rows[at], chosen[at], logits[at : at + 1], sampler)
            if settled is None:
                unsettled.append(at)
            else:
                chosen[at] = settled
    if unsettled:
        again = [rows[at] for at in unsettled]
        make_masks(again)
        for at, token in zip(unsettled, _sampled_again(again, unsettled, logits, sampler), strict=True):
            chosen[at] = token
    return chosen


def _settled(row: AnswerRow, chosen: ChosenToken, logits: Tensor, sampler: Sampler) -> ChosenToken | None:
    """The token of a constrained row [1, >= vocabulary], if that needs no mask; `chosen` is its first."""
    state, grammar = row.sampling, row.grammar
    for left in reversed(range(_DRAWS)):
        if chosen.failed or grammar is None:
            return chosen
        if grammar.permits(chosen.token):
            if _kept(grammar, chosen):
                return chosen
            state.proposed = chosen.token
            return None
        if not left or not state.params.temperature:
            return None
        (chosen,) = sampler.sample(logits, [state])
    return None


def _kept(grammar: GrammarState, chosen: ChosenToken) -> bool:
    """Whether a token that the grammar permits is surely one of those that may be drawn."""
    if chosen.lacks < 0:
        return True
    found, possible = 0.0, sum(share for _, share in chosen.near)
    for token, share in chosen.near:
        if possible <= chosen.lacks:
            return False
        if grammar.follows(token):
            found += share
            if found > chosen.lacks:
                return True
        else:
            possible -= share
    return False


def _sampled_again(
    rows: Sequence[AnswerRow], places: list[int], logits: Tensor, sampler: Sampler
) -> list[ChosenToken]:
    states = [row.sampling for row in rows]
    if logits.is_cuda:
        return sampler.sample(logits[places], states)
    # Few rows, and a copy would wake torch's pool of threads for more than choosing takes.
    return [sampler.sample(logits[at : at + 1], [state])[0] for at, state in zip(places, states, strict=True)]
