"""Where an activated LoRA begins to act on a prompt (Greenewald et al. 2025, arXiv 2504.12397), as in PEFT.

What comes before the last occurrence of its invocation tokens in the prompt is the base's; they and all that
follows, the answer included, are the adapter's. So keys and values that the base computed serve the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from router.errors import NotActivated


def tokens_before(tokens: Sequence[int], invocation: tuple[int, ...]) -> int:
    """How many of a prompt's `tokens` the base computes; 0 for an adapter without `invocation` tokens.

    Raises NotActivated where they do not occur: the adapter would never act.
    """
    if not invocation:
        return 0
    place = last_occurrence(tokens, invocation)
    if place < 0:
        raise NotActivated(invocation)
    return place


def last_occurrence(tokens: Sequence[int], wanted: tuple[int, ...]) -> int:
    """Where `wanted` last begins, -1 if nowhere. From the end, in linear time (Knuth, Morris, Pratt 1977)."""
    pattern, borders = _backwards(wanted)
    matched = 0
    for place in range(len(tokens) - 1, -1, -1):
        token = tokens[place]
        while matched and token != pattern[matched]:
            matched = borders[matched - 1]
        if token == pattern[matched]:
            matched += 1
            if matched == len(pattern):
                return place
    return -1


@lru_cache(256)
def _backwards(wanted: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pattern from its end, and the longest proper border of each of its beginnings."""
    pattern = wanted[::-1]
    borders = [0] * len(pattern)
    length = 0
    for place in range(1, len(pattern)):
        while length and pattern[place] != pattern[length]:
            length = borders[length - 1]
        length += pattern[place] == pattern[length]
        borders[place] = length
    return pattern, tuple(borders)
