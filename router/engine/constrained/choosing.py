"""Constrained rows look first: a mask is made only where the grammar refuses what was chosen from all tokens.

What comes is as if it had been chosen from those allowed. The likeliest of all, if it is allowed, is the
likeliest of those that are. A draw from all that is kept if allowed, and otherwise made again from those
allowed, has their distribution: with p of a token and a of all allowed, p + (1 - a) p / a = p / a. Only what
is drawn from the likeliest few needs its mask at once, since which these are depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from router.engine.constrained.masks import MaskMaker
from router.engine.sampling import Sampled, Sampler

if TYPE_CHECKING:
    from router.engine.rows import AnswerRow


def choose(rows: Sequence[AnswerRow], logits: Tensor, sampler: Sampler, masks: MaskMaker) -> list[Sampled]:
    """The next token of each row of logits [rows, >= vocabulary], constrained or not."""
    sampled = sampler.sample(logits, [row.sampling for row in rows])
    refused = [at for at, row in enumerate(rows) if _refuses(row, sampled[at])]
    if refused:
        again = [rows[at] for at in refused]
        masks.make(again)
        for at, token in zip(refused, _sampled_again(again, refused, logits, sampler), strict=True):
            sampled[at] = token
    return sampled


def _sampled_again(
    rows: Sequence[AnswerRow], places: list[int], logits: Tensor, sampler: Sampler
) -> list[Sampled]:
    states = [row.sampling for row in rows]
    if logits.is_cuda:
        return sampler.sample(logits[places], states)
    # Few rows, and a copy would wake torch's pool of threads for more than choosing takes.
    return [sampler.sample(logits[at : at + 1], [state])[0] for at, state in zip(places, states, strict=True)]


def _refuses(row: AnswerRow, sampled: Sampled) -> bool:
    follower = row.follower
    if follower is None or row.sampling.allowed is not None or sampled.failed:
        return False
    return not follower.permits(sampled.id)
