"""Drafts: what an answer is likely to say next, so that one step computes several of its tokens.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), a kind of speculative
decoding (Leviathan et al., ICML 2023, arxiv.org/abs/2211.17192) without a second model. A draft is copied
from the row's prompt or from its answer so far. A step computes the row's last token and its drafts; the
row's own choice at each place says whether the draft there was right. A choice is made as it is without
drafts: with its own random number, penalties and grammar. So drafts change no token, only the number of
steps.

A few tokens more cost a small step little, since reading the weights takes most of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from router.engine.rows import AnswerRow, BatchRow, Chunk

FEW_TOKENS = 8  # of a step, its drafts included
LONGEST = 8  # tokens of a match that are compared
_TRIED = 16  # earlier places of a token that are compared
_MOST_REST = 16  # steps
_LEAST = 2  # drafts of a row whose last ones were wrong


class Folded(dict[int, int]):
    """A number for each token, the same for tokens that differ in case or in white space around them only.

    An answer begins with "Paris" where the passage has " Paris".
    """

    def __init__(self, spell: Callable[[int], str]) -> None:
        """`spell` gives the text of a token."""
        self._spell = spell
        self._numbers: dict[str, int] = {}

    def __missing__(self, token: int) -> int:
        """Spelt once; there are at most as many as the vocabulary has."""
        text = self._spell(token)
        number = self._numbers.setdefault(text.strip().lower() or text, len(self._numbers))
        self[token] = number
        return number


class CopyIndex:
    """Where the tokens of a row were seen before; a token is added in constant time."""

    def __init__(self, folded: Folded) -> None:
        self.tokens: list[int] = []
        self._keys: list[int] = []
        self._folded = folded
        self._last: dict[int, int] = {}  # where a key was last
        self._before: list[int] = []  # where the key at a place was before, -1: nowhere

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the row's next tokens."""
        self.tokens += tokens
        last, before = self._last, self._before
        keys = list(map(self._folded.__getitem__, tokens))
        for place, key in enumerate(keys, len(self._keys)):
            before.append(last.get(key, -1))
            last[key] = place
        self._keys += keys

    def following(self, most: int) -> list[int]:
        """At most `most` tokens that stood behind the longest earlier match of the last ones, of equals the
        first; none where the last token was not seen before."""
        keys, place = self._keys, self._before[-1]
        found, longest = len(keys), 0
        for _ in range(_TRIED):
            if place < 0:
                break
            length, possible = 1, min(LONGEST, place + 1)
            while length < possible and keys[place - length] == keys[-1 - length]:
                length += 1
            if length >= longest:
                found, longest = place + 1, length
            place = self._before[place]
        return self.tokens[found : found + most]


class Drafter:
    """Proposes what one row says next, and less often where that is seldom right."""

    def __init__(self, folded: Folded) -> None:
        self._index = CopyIndex(folded)
        self._most = FEW_TOKENS
        self._rest = self._resting = (
            0  # steps for which it proposes nothing, and how many after the next failure
        )

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens behind a row's `tokens`."""
        if self._rest:
            self._rest -= 1
            return []
        self._index.extend(tokens[len(self._index.tokens) :])
        return self._index.following(min(most, self._most))

    def verified(self, drafts: int, right: int) -> None:
        """Of so many drafts, the first `right` were right."""
        self._most = FEW_TOKENS if right == drafts else max(_LEAST, right + 1)
        self._rest = 0 if right else self._resting
        self._resting = 0 if right else min(_MOST_REST, 2 * self._resting + 1)


class Speculation:
    """The drafts of all rows; used by the engine's thread only."""

    def __init__(self, spell: Callable[[int], str], room: Callable[[BatchRow, int], int]) -> None:
        """`spell`: the text of a token; `room`: how many of so many tokens a row has blocks for."""
        self._folded, self._room = Folded(spell), room
        self._drafters: dict[BatchRow, Drafter | None] = {}  # None: no more drafts for the row

    def add(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step of few tokens, with drafts; the very same list if there are none."""
        left = FEW_TOKENS - sum(chunk.count for chunk in chunks)
        share = -(-left // len(chunks))
        found: dict[int, list[int]] = {}
        for place, chunk in enumerate(chunks):
            if left <= 0:
                break
            row = chunk.row
            if (
                chunk.samples
                and isinstance(row, AnswerRow)
                and (drafts := self._drafts(row, min(share, left)))
            ):
                found[place] = drafts
                left -= len(drafts)
        if not found:
            return chunks
        drafted = list(chunks)
        for place, drafts in found.items():
            drafted[place] = replace(chunks[place], count=chunks[place].count + len(drafts), drafts=drafts)
        return drafted

    def verified(self, row: AnswerRow, drafts: int, right: int) -> None:
        """Of so many drafts of a row, the first `right` were right."""
        if (drafter := self._drafters.get(row)) is not None:
            drafter.verified(drafts, right)

    def stop(self, row: AnswerRow) -> None:
        """No more drafts for a row."""
        self._drafters[row] = None

    def ended(self, row: BatchRow) -> None:
        """A row is over."""
        self._drafters.pop(row, None)

    def _drafts(self, row: AnswerRow, most: int) -> list[int]:
        most = min(most, row.total - len(row.tokens) - 1)
        # Where masks are much work, each draft would make one more in the same step.
        if most <= 0 or not row.generated or row.skipped:
            return []
        if row not in self._drafters:
            self._drafters[row] = Drafter(self._folded)
        drafter = self._drafters[row]
        drafts = [] if drafter is None else drafter.propose(row.tokens, most)
        return drafts[: self._room(row, len(drafts))] if drafts else drafts
