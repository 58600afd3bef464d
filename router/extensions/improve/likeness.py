"""How texts compare with the texts that an adapter was trained on: form, script, language, words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

_WORD = re.compile(r"\w+")
FOREIGN_SHARE = 0.3  # of a text's letters in scripts that the adapter's texts do not have
KNOWN_SCRIPT = 0.02  # of all letters of the adapter's texts: a script that they have
COMMON_WORDS, LEAST_WORDS = 300, 8  # of the adapter's texts; fewer words in a text tell no language
LENGTHS, SLACK = (
    2.0,
    100,
)  # a text may be so many times as long as the longest of the adapter's, and so much more
RARE = 0.05  # share of texts that have a word, up to which it says what a text is about
NEAR = 0.8  # of the rare words of two texts in common: they ask the same
NEIGHBOURS = 5


def key(text: str) -> str:
    """What two texts share that count as the same: no case, white space folded."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """In lower case."""
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0]


def scripts(text: str) -> Counter[str]:
    """Letters by script, such as LATIN."""
    return Counter(_script(letter) for letter in text if letter.isalpha())


@dataclass(frozen=True)
class Texts:
    """The prompts, or the responses, of an adapter's own rows. Where there are none, every text fits."""

    own: Sequence[str]

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.own), default=0)

    @cached_property
    def _scripts(self) -> set[str]:
        counted = sum(map(scripts, self.own), Counter[str]())
        return {name for name, count in counted.items() if count >= KNOWN_SCRIPT * counted.total()}

    @cached_property
    def _common(self) -> set[str]:
        counted = Counter(word for text in self.own for word in words(text))
        return {word for word, _ in counted.most_common(COMMON_WORDS)}

    @cached_property
    def _least_common(self) -> float:
        """Half of the share of common words that nearly all of the own texts have."""
        shares = sorted(share for text in self.own if (share := self._share(text)) is not None)
        return shares[len(shares) // 20] / 2 if shares else 0.0

    def _share(self, text: str) -> float | None:
        found = words(text)
        return sum(word in self._common for word in found) / len(found) if len(found) >= LEAST_WORDS else None

    def too_long(self, text: str) -> bool:
        """Far longer than the longest of the own texts."""
        return bool(self.own) and len(text) > LENGTHS * self._longest + SLACK

    def foreign(self, text: str) -> bool:
        """In another script, or in another language as far as its common words tell."""
        counted = scripts(text)
        if not self.own or not counted:
            return False
        if (
            sum(counted[name] for name in counted if name not in self._scripts)
            > FOREIGN_SHARE * counted.total()
        ):
            return True
        share = self._share(text)
        return share is not None and share < self._least_common


class Index:
    """Texts with labels, found by the rare words that they share with another text.

    `frequency` counts in how many of `total` texts a word is.
    """

    def __init__(self, frequency: Counter[str], total: int) -> None:
        self._frequency, self._total = frequency, total
        self._rows: list[tuple[frozenset[str], str, str]] = []  # rare words, label, owner
        self._by_word: dict[str, list[int]] = defaultdict(list)

    @classmethod
    def over(cls, texts: Iterable[str]) -> Index:
        """An empty index whose rare words are those of `texts`."""
        frequency: Counter[str] = Counter()
        total = 0
        for text in texts:
            frequency.update(set(words(text)))
            total += 1
        return cls(frequency, total)

    def add(self, text: str, label: str, owner: str = "") -> None:
        """A text; `owner` is the unit that it comes from."""
        rare = self._rare(text)
        for word in rare:
            self._by_word[word].append(len(self._rows))
        self._rows.append((rare, label, owner))

    def same(self, text: str) -> str | None:
        """The label of a text that asks the same; None if there is none."""
        rare = self._rare(text)
        shared = Counter(row for word in rare for row in self._by_word.get(word, ()))
        for row, count in shared.most_common(NEIGHBOURS):
            if count >= NEAR * len(rare | self._rows[row][0]):
                return self._rows[row][1]
        return None

    def expected(self, text: str, owner: str) -> str | None:
        """The label that the nearest texts of other owners have; None where none shares a rare word."""
        scores: Counter[int] = Counter()
        for word in self._rare(text):
            weight = math.log((self._total + 1) / (self._frequency[word] + 1)) + 0.1
            for row in self._by_word.get(word, ()):
                if not owner or self._rows[row][2] != owner:
                    scores[row] += weight  # type: ignore[assignment]
        votes: Counter[str] = Counter()
        for row, score in scores.most_common(NEIGHBOURS):
            votes[self._rows[row][1]] += score / math.sqrt(1 + len(self._rows[row][0]))  # type: ignore[assignment]
        return votes.most_common(1)[0][0] if votes else None

    def _rare(self, text: str) -> frozenset[str]:
        most = max(RARE * self._total, 1)
        return frozenset(word for word in words(text) if self._frequency[word] <= most)
