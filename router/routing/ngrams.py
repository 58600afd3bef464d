"""Hashed word and character n-grams of a request: three blocks of features, one for each part of it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from router.routing.segments import PARTS, parts
from router.routing.texts import words

SIZE = 1 << 13  # hash buckets of a block
MARKED = 6  # first and last words of the whole that also count as such
Array = np.ndarray[Any, Any]
Block = tuple[Array, Array]  # buckets and their values


class Ngrams:
    """Inverse document frequencies learned from texts; then unit vectors of texts, part by part.

    Buckets never seen in training keep their share of a vector's length: strange words shrink the evidence
    of the others.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.rows = [list(_blocks(text)) for text in texts]
        seen = np.zeros((PARTS, SIZE), np.float32)
        for row in self.rows:
            for k, (buckets, _) in enumerate(row):
                seen[k, buckets] += 1
        self._idf = np.log((1 + len(texts)) / (1 + seen)) + 1
        self.rows = [self._weighed(row) for row in self.rows]

    def __call__(self, text: str) -> list[Block]:
        """Buckets and values of each part."""
        return self._weighed(_blocks(text))

    def matrix(self, part: int) -> Array:
        """The texts learned from as rows, [texts, SIZE]."""
        dense = np.zeros((len(self.rows), SIZE), np.float32)
        for out, row in zip(dense, self.rows, strict=True):
            buckets, values = row[part]
            out[buckets] = values
        return dense

    def _weighed(self, row: Iterator[Block] | list[Block]) -> list[Block]:
        weighed = []
        for k, (buckets, values) in enumerate(row):
            values = values * self._idf[k, buckets]
            weighed.append((buckets, values / (np.linalg.norm(values) or 1.0)))
        return weighed


def _blocks(text: str) -> Iterator[Block]:
    for part in parts(text):
        yield _features(words(part))


def _features(tokens: Sequence[str]) -> Block:
    """Words, pairs, first and last words, and 3 to 5 grams of bytes."""
    marked = [f"^{w}" for w in tokens[:MARKED]] + [f"{w}$" for w in tokens[-MARKED:]]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    named = [zlib.crc32(t.encode()) for t in (*tokens, *pairs, *marked)]
    grams = _byte_grams(" ".join(["", *tokens, ""]).encode())
    total = np.zeros(SIZE, np.float32)
    for hashes, share in ((np.array(named, np.uint32), 1.0), (grams, 0.7)):
        counts = np.sqrt(np.bincount(hashes % SIZE, minlength=SIZE).astype(np.float32))
        total += share * counts / (np.linalg.norm(counts) or 1.0)
    buckets = np.flatnonzero(total)
    return buckets, total[buckets]


def _byte_grams(data: bytes) -> Array:
    """Polynomial hashes of all runs of 3, 4 and 5 bytes."""
    raw = np.frombuffer(data, np.uint8).astype(np.uint32)
    runs = []
    value = raw[:-1] * np.uint32(0x01000193) + raw[1:] if raw.size > 1 else raw[:0]
    for length in (3, 4, 5):
        if raw.size < length:
            break
        value = value[: raw.size - length + 1] * np.uint32(0x01000193) + raw[length - 1 :]
        runs.append((value ^ (value >> np.uint32(15))) * np.uint32(0x85EBCA6B) >> np.uint32(7))
    return np.concatenate(runs) if runs else np.zeros(0, np.uint32)
