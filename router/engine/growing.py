"""How an answer grows by a sampled token, and by those that its grammar forces after it."""

from __future__ import annotations

from typing import NamedTuple

from router.engine.rows import AnswerRow
from router.types import FinishReason


class Grown(NamedTuple):
    """What became certain of an answer, and why it ends, if it does.

    `by_token`: its last token ended it, and is no part of the text.
    """

    text: str = ""
    reason: FinishReason | None = None
    by_token: bool = False


def begin(row: AnswerRow) -> Grown:
    """What a grammar forces before anything is sampled: its tokens are computed with the prompt."""
    return _forced(row, Grown())


def grow(row: AnswerRow, token: int) -> Grown:
    """Add a sampled token, and what is forced after it."""
    grown = _appended(row, token)
    if row.follower is None or grown.reason is FinishReason.STOP:
        return grown
    row.follower.accept(token)
    return _forced(row, grown)


def _appended(row: AnswerRow, token: int) -> Grown:
    row.tokens.append(token)
    row.sampling.accept(token)
    reason = row.ended_by(token)
    by_token = reason is FinishReason.STOP
    text = "" if by_token else row.detokenizer.push(token)
    if row.detokenizer.stopped:
        reason = FinishReason.STOP
    elif reason is not None:
        text += row.detokenizer.flush()
    row.unsent += not by_token
    return Grown(text, reason, by_token)


def _forced(row: AnswerRow, grown: Grown) -> Grown:
    """`grown` and what is forced after it. An answer that is whole ends without another step."""
    follower = row.follower
    if follower is None:
        return grown
    forced = follower.forced() if grown.reason is None else []
    for left, token in zip(reversed(range(len(forced))), forced, strict=True):
        more = _appended(row, token)
        grown = more._replace(text=grown.text + more.text)
        if grown.reason is not None and left:
            return grown
    if not follower.complete or grown.reason is FinishReason.STOP:
        return grown
    rest = row.detokenizer.flush() if grown.reason is None else ""
    return Grown(grown.text + rest, FinishReason.STOP)
