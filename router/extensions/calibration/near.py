"""Texts that are nearly the same: what was corrected and what it is tested on must not be."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

ALIKE = 0.7  # share of the words of two texts that stand in both (Jaccard)
# Scripts without spaces between words are compared letter by letter.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)


def normal(text: str) -> str:
    """The text without what makes no difference: white space."""
    return " ".join(text.split())


class SimilarTexts:
    """Known texts, to ask which of them is much like another text."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: list[str] = []
        self._sizes: list[int] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Know it, too."""
        words = _words(text)
        for word in words:
            self._places[word].append(len(self._texts))
        self._texts.append(text)
        self._sizes.append(len(words))

    def like(self, text: str) -> str | None:
        """The first known text that is nearly the same; None if there is none."""
        words = _words(text)
        shared = Counter(place for word in words for place in self._places.get(word, ()))
        alike = (
            place
            for place, count in shared.items()
            if count >= ALIKE * (len(words) + self._sizes[place] - count)
        )
        place = min(alike, default=None)
        return None if place is None else self._texts[place]


def _words(text: str) -> frozenset[str]:
    """Words, or the text itself where it has none."""
    return frozenset(_WORD.findall(text.lower())) or frozenset({normal(text)})
