"""Drafts: what an answer is likely to say next, so that one step computes several of its tokens.

Speculative decoding (Leviathan et al., ICML 2023, arxiv.org/abs/2211.17192) without a second model. A step
computes a row's last token and its drafts; the row's own choice at each place says whether the draft there
was right. A choice is made as it is without drafts: with its own random number, penalties and grammar. So
drafts change no token, only the number of steps.

A draft is copied from the prompt and the answer so far (prompt lookup decoding, Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding), or continues as earlier answers of the same adapter to the
same tenant did, or as those without a tenant, such as the adapter's answers to its probes. How often either
is right is counted, what a step costs by its number of tokens is measured, and only drafts that are worth
their cost are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router.engine.constrained.state import GrammarAhead, GrammarState

LONGEST = 8  # tokens of a match that are compared
_TRIED = 16  # earlier places of a token that are compared
_ORDER = 3  # tokens of an answer that earlier answers are searched for
_CONTEXTS = 8192  # that are kept of the answers of an adapter to a tenant
_LEARNT = 512  # tokens of an answer that are kept at most
_BITS = 21  # of a token in a context
_MOST_SEEN = 63  # how often a continuation is counted


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
        self.keys: list[int] = []
        self._folded = folded
        self._last: dict[int, int] = {}  # where a key was last
        self._before: list[int] = []  # where the key at a place was before, -1: nowhere

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the row's next tokens."""
        self.tokens += tokens
        last, before = self._last, self._before
        keys = list(map(self._folded.__getitem__, tokens))
        for place, key in enumerate(keys, len(self.keys)):
            before.append(last.get(key, -1))
            last[key] = place
        self.keys += keys

    def key(self, token: int) -> int:
        """What a token is found by."""
        return self._folded[token]

    def find(self, tail: Sequence[int]) -> tuple[int, int]:
        """The place behind an earlier occurrence of the keys `tail`, and how many of them match there.

        The longest match, of equals the first. (0, 0) where not even the last of them is found.
        """
        keys, end = self.keys, len(self.keys) - 1
        place = self._last.get(tail[-1], -1)
        if place == end:
            place = self._before[place] if place >= 0 else -1
        found, longest = 0, 0
        for _ in range(_TRIED):
            if place < 0:
                break
            length, most = 1, min(len(tail), place + 1)
            while length < most and keys[place - length] == tail[-1 - length]:
                length += 1
            if length >= longest:
                found, longest = place + 1, length
            place = self._before[place]
        return found, longest


# What a draft token is taken from, by which its chance is counted: earlier answers by the length of the
# context and by how often it was continued so, and the row's own tokens by the length of the match.
_FEW, _SOME = 2, 4  # continuations seen so often
_ANSWERS = 3 * _ORDER
_SOURCES = _ANSWERS + 4
_FIRST_CHANCES = [0.12, 0.35, 0.6, 0.3, 0.5, 0.75, 0.45, 0.7, 0.85, 0.3, 0.45, 0.5, 0.55]
_PRIOR, _WINDOW = 4.0, 128.0  # draft tokens that the first chances, and all that is remembered, count for


class AnswerMemory:
    """How answers of one adapter to one tenant went on, and how often drafts were right."""

    def __init__(self, others: AnswerMemory | None = None) -> None:
        """`others`: how answers went on that this one begins with."""
        # Context -> token that followed, and how often it did of late.
        self._next: dict[int, int] = {} if others is None else dict(others._next)
        self._tried = [_PRIOR] * _SOURCES
        self._right = [_PRIOR * chance for chance in _FIRST_CHANCES]
        self.chances = list(_FIRST_CHANCES)  # that a draft token of each source is right

    def learn(self, answer: Sequence[int]) -> None:
        """Remember an answer."""
        known = self._next
        first = second = third = 0  # the tokens before, each plus 1; 0 stands before the answer
        for token in islice(answer, _LEARNT):
            for context in _contexts(first, second, third):
                packed = known.get(context, 0)
                if packed >> 6 == token:
                    known[context] = packed + ((packed & _MOST_SEEN) < _MOST_SEEN)
                elif packed & _MOST_SEEN > 1:
                    known[context] = packed - 1
                else:
                    known[context] = token << 6 | 1
            first, second, third = token + 1, first, second
        if len(known) > _CONTEXTS:
            for context in list(islice(known, len(known) - _CONTEXTS * 7 // 8)):
                del known[context]

    def next(self, tail: Sequence[int]) -> tuple[int, int]:
        """What followed the last tokens of an answer (each plus 1, 0s before the first), and its source."""
        order = _ORDER
        for context in reversed(_contexts(tail[-1], tail[-2], tail[-3])):
            order -= 1
            packed = self._next.get(context)
            if packed is not None:
                seen = packed & _MOST_SEEN
                return packed >> 6, 3 * order + (seen >= _FEW) + (seen >= _SOME)
        return -1, -1

    def count(self, source: int, right: bool) -> None:
        """A draft token of a source was right, or wrong."""
        self._tried[source] += 1
        self._right[source] += right
        if self._tried[source] > _WINDOW:
            self._tried[source] /= 2
            self._right[source] /= 2
        self.chances[source] = self._right[source] / self._tried[source]


def _contexts(first: int, second: int, third: int) -> tuple[int, int, int]:
    """Keys of the last token, of the last two and of the last three, `first` being the last."""
    two = (second << _BITS | first) << 2
    return first << 2 | 1, two | 2, third << (2 * _BITS + 2) | two | 3


class Copies:
    """What the tokens of a row continue with, where they stood before, while drafts are put behind them."""

    def __init__(self, index: CopyIndex, copying: bool) -> None:
        """Nothing where it is not `copying`."""
        self._index, self._copying = index, copying
        self._keys = index.keys[-LONGEST:]
        self._place = self._length = 0  # where is copied from, and how many tokens before were equal

    def next(self) -> tuple[int, int]:
        """The token, and its source; -1 and -1 where there is none."""
        if not self._length and self._copying:
            self._place, self._length = self._index.find(self._keys)
        if not self._length:
            return -1, -1
        return self._index.tokens[self._place], _ANSWERS - 1 + min(4, self._length)

    def go_on(self, draft: int) -> None:
        """A draft stands behind them now."""
        if not self._copying:
            return
        index, key = self._index, self._index.key(draft)
        self._keys = [*self._keys[1 - LONGEST :], key]
        same = self._length and self._place + 1 < len(index.tokens) and index.keys[self._place] == key
        self._place, self._length = (self._place + 1, self._length + 1) if same else (0, 0)


_COUNTED = 3.0  # draft tokens that a row's own luck begins with
_MOST_LUCK = 1.0
_COPIES_PAY = 0.35  # chance that drafts must have up to which a prompt is searched: that takes some time
_MOST_SURE = 0.98


class Draft(NamedTuple):
    """A token that may come next."""

    token: int
    chance: float  # that it and all before it are right
    saves: float  # steps, by that chance: the row's choice behind it is made one step earlier


class Drafter:
    """Proposes what one row says next."""

    def __init__(self, folded: Folded, memory: AnswerMemory) -> None:
        self.rest = 0  # steps for which it is not asked, since its drafts did not pay
        self.resting = 0  # how long it rested last
        self._index, self._memory = CopyIndex(folded), memory
        self._seen = 0  # tokens of the row that are in the index
        self._proposed: list[tuple[int, int, int, int]] = []  # token, source, and the same of the other one
        self._right = self._expected = _COUNTED

    def propose(
        self,
        tokens: Sequence[int],
        prompt: int,
        most: int,
        floor: float,
        grammar: GrammarState | None = None,
    ) -> list[Draft]:
        """Up to `most` tokens behind a row's `tokens`, `prompt` of them its prompt.

        Their chances are `floor` or more. A `grammar` leaves out what may not come, and adds what must. What
        it forces needs no step without drafts either, nor does a token that makes the answer whole: neither
        saves one.
        """
        memory = self._memory
        copying = len(tokens) > prompt and floor < _COPIES_PAY
        if copying:
            self._index.extend(tokens[self._seen :])
            self._seen = len(tokens)
        copies = Copies(self._index, copying)
        said = [0, 0, 0, *(token + 1 for token in tokens[max(prompt, len(tokens) - _ORDER) :])]
        chance, luck = 1.0, min(_MOST_LUCK, self._right / self._expected)
        drafts, chances = list[Draft](), memory.chances
        self._proposed = proposed = []
        ahead: GrammarAhead | None = None
        while len(drafts) < most:
            token, source = memory.next(said)
            other, others = copies.next()
            if others >= 0 and (source < 0 or chances[others] > chances[source]):
                token, source, other, others = other, others, token, source
            if source < 0:
                break
            sure = chances[source] * luck
            if token == other:
                sure = max(sure, chances[others] * luck)
            forced: Sequence[int] | None = ()
            if grammar is not None and chance * sure >= floor:
                ahead = ahead or grammar.ahead()
                forced = ahead.take(token)
                if forced is None and others >= 0 and other != token:
                    token, source, other, others = other, others, -1, -1
                    sure, forced = chances[source] * luck, ahead.take(token)
            chance *= min(_MOST_SURE, sure)
            if forced is None or chance < floor or (ahead is not None and ahead.complete):
                proposed.append((token, source, other, others))
                break
            group = (token, *forced)
            for draft in group:
                proposed.append((draft, source, other, others))
                source = other = others = -1  # what is forced is no proposal
                drafts.append(Draft(draft, chance, 0.0))
                said.append(draft + 1)
                copies.go_on(draft)
            drafts[-1] = drafts[-1]._replace(saves=chance)
        return drafts[:most]

    def verified(self, tokens: Sequence[int]) -> None:
        """The row went on with `tokens`: count how good the proposal was, as far as it shows."""
        count = self._memory.count
        for number, (proposal, token) in enumerate(zip(self._proposed, tokens, strict=False)):
            draft, source, other, others = proposal
            if not number:
                self._expected += self._memory.chances[source]
                self._right += draft == token
            if source >= 0:
                count(source, draft == token)
            if others >= 0:
                count(others, other == token)
            if draft != token:
                break
        self._proposed = []

    def learn(self, answer: Sequence[int]) -> None:
        """Remember the row's answer for later ones."""
        self._memory.learn(answer)
