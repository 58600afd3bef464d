"""What keeps further training rows away from the validation and test splits."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

FIRST_FOR_TRAINING = 0.22  # of the hash that made the splits: test from 0, validation from 0.14


def for_training(group: str, first: float = FIRST_FOR_TRAINING) -> bool:
    """Whether the hash by which the splits were made gives a group to training, from `first` on."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 >= first


class Known:
    """Texts as sets of words, to ask whether one of them is much like another text.

    Two sets with a Jaccard similarity of s share one of their rarest words: of n words, one of the
    n - ceil(s n) + 1 rarest (Chaudhuri et al. 2006, A Primitive Operator for Similarity Joins in Data
    Cleaning), so only those are looked up.
    """

    def __init__(self, texts: Iterable[str], similarity: float = 0.7) -> None:
        self._similarity = similarity
        known = {_words(text) for text in texts}
        self._count = Counter(word for words in known for word in words)
        self._by_word: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
        for words in known:
            for word in self._rarest(words):
                self._by_word[word].append(words)

    def near(self, text: str) -> bool:
        """Whether a known text and this one share at least that part of the words of both."""
        words = _words(text)
        candidates = (other for word in self._rarest(words) for other in self._by_word.get(word, ()))
        return any(len(words & other) >= self._similarity * len(words | other) for other in candidates)

    def _rarest(self, words: frozenset[str]) -> list[str]:
        size = len(words) - math.ceil(self._similarity * len(words)) + 1
        return sorted(words, key=lambda word: (self._count[word], word))[:size]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", text.lower()))
