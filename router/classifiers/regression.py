"""What the classifiers that are shipped learn with: softmax regression on n-grams and vectors of requests,
taught by the adapters' own examples beside a class "none of them".
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router import __version__
from router.classifiers.caches import FitCache
from router.classifiers.contract import Scores
from router.classifiers.texts import whole_first_last, words
from router.types import AdapterProfile

Array = np.ndarray[Any, Any]

MAX_ROWS = 4000  # texts learned at most, spread evenly over adapters
MOST_NAMED = 8  # adapters in one answer
PARTS = 3  # the whole, the first sentence, the last one

BUCKETS = 1 << 13  # of hashed n-grams, for each part
MARKED = 6  # first and last words of the whole that also count as such
Block = tuple[Array, Array]  # buckets and their values
COMMON = 0.08  # share of the texts above which a bucket costs less in a dense product than pair by pair

TILE = 62  # TILE**3 is below where OpenBLAS starts threads (2**18), which would fight the engine's
WIDTH = 16 * TILE  # dense columns in memory at a time

ITERATIONS = 60
BIAS = 0.1  # square of the constant feature
PENALTY = 1e-3

# -- what is learned from


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Texts and what each may be. A negative example teaches "not this adapter", not what it is instead."""

    names: tuple[str, ...]  # classes; the last, "", is none of the adapters
    texts: tuple[str, ...]
    allowed: Array  # [texts, classes], 1 where a text may be of the class

    def key(self, *maker: object) -> bytes:
        """32 bytes: of what is learned, and of what learns it, which is the release and `maker`."""
        text = json.dumps([__version__, *map(str, maker), self.names, self.texts, self.allowed.shape])
        return hashlib.sha256(text.encode() + self.allowed.tobytes()).digest()


def training_set_of(
    adapters: Sequence[AdapterProfile], background: Path, described: bool = False
) -> TrainingSet | None:
    """Of all adapters that have examples; None if there is no such adapter. Where `described`, the
    description of an adapter is one more example of it."""
    learnable = [a for a in adapters if a.examples]
    if not learnable:
        return None
    names = (*(a.name for a in learnable), "")
    each = max(8, MAX_ROWS // len(names))
    classes = np.eye(len(names), dtype=np.float32)
    texts: list[str] = []
    allowed: list[Array] = []
    for i, adapter in enumerate(learnable):
        more = [adapter.description] if described else []
        texts += (positive := spread_evenly([*adapter.examples, *more], each))
        allowed += [classes[i]] * len(positive)
        texts += (negative := spread_evenly(adapter.negative_examples, each))
        allowed += [1 - classes[i]] * len(negative)
    texts += (general := read_background(background, adapters))
    allowed += [classes[-1]] * len(general)
    return TrainingSet(names, tuple(texts), np.array(allowed))


def spread_evenly(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly from first to last."""
    present = [t for t in texts if t.strip()]
    step = max(1.0, len(present) / count)
    return [present[int(i * step)] for i in range(min(count, len(present)))]


def read_background(path: Path, adapters: Sequence[AdapterProfile]) -> list[str]:
    """Requests that no adapter of these should get, from a file of lines under `# NAME [ALIAS...]` headings.

    A section that is named like the domain or task of an adapter is left out: it is no background then.
    """
    taken = {axis for a in adapters for axis in (a.name, a.domain, a.task)}
    lines: list[str] = []
    wanted = True
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            wanted = taken.isdisjoint(line[2:].split())
        elif line.strip() and wanted:
            lines.append(line.strip())
    return lines


def file_digest(path: Path) -> str:
    """Of a file's bytes: for the fingerprint of a classifier that learns from it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# -- the regression on n-grams and vectors


def fit_regression(
    training_set: TrainingSet, vectors: Array, penalty: float, temperature: float
) -> SoftmaxRegression:
    """Learn from the training set. `vectors` are [texts, size]; of size 0 where there is no encoder."""
    ngrams = Ngrams(training_set.texts)
    similar = gram_in_pieces(vectors) + ngrams.gram() + np.float32(BIAS)
    dual = fit_dual(similar.astype(np.float32), training_set.allowed, penalty)
    weights = np.stack([_primal([row[part] for row in ngrams.rows], dual) for part in range(PARTS)])
    ngrams.rows.clear()
    return SoftmaxRegression(
        training_set.names, ngrams, weights, vectors.T @ dual, BIAS * dual.sum(axis=0), temperature
    )


def cached_regression(
    cache: FitCache | None,
    maker: str,
    training_set: TrainingSet,
    vectors: Callable[[], Array],
    penalty: float,
    temperature: float,
) -> SoftmaxRegression:
    """The same from the cache, if it is there; else learned, and added to the cache.

    `maker` names what makes `vectors`.
    """
    if cache is None:
        return fit_regression(training_set, vectors(), penalty, temperature)
    key = training_set.key(maker, penalty, temperature)
    if (arrays := cache.find(key)) is not None:
        return SoftmaxRegression.of(arrays, training_set.names, temperature)
    learned = fit_regression(training_set, vectors(), penalty, temperature)
    cache.put(key, learned.arrays())
    return learned


def _primal(rows: list[Block], dual: Array) -> Array:
    """Weights [BUCKETS, classes]: the texts' features times their coefficients."""
    weights = np.zeros((BUCKETS, dual.shape[1]), np.float32)
    for (buckets, values), coefficients in zip(rows, dual, strict=True):
        weights[buckets] += values[:, None] * coefficients
    return weights


@dataclass(frozen=True, slots=True)
class SoftmaxRegression:
    """Weights of a fit. Probabilities are softmax(logits / temperature)."""

    names: tuple[str, ...]  # classes; the last is none of the adapters
    ngrams: Ngrams
    weights: Array  # [PARTS, BUCKETS, classes]
    vector_weights: Array  # [vector size, classes]
    bias: Array  # [classes]
    temperature: float

    @classmethod
    def of(cls, arrays: Mapping[str, Array], names: tuple[str, ...], temperature: float) -> SoftmaxRegression:
        """What `arrays` gave."""
        ngrams = Ngrams.of(arrays["idf"])
        return cls(names, ngrams, arrays["weights"], arrays["vectors"], arrays["bias"], temperature)

    def arrays(self) -> dict[str, Array]:
        """What has to be kept of it beside names and temperature."""
        of_vectors = {"vectors": self.vector_weights, "bias": self.bias}
        return {"idf": self.ngrams.idf, "weights": self.weights, **of_vectors}

    def __call__(self, text: str, vector: Array) -> Scores:
        """Probabilities of the best adapters; `vector` is empty where the fit had none."""
        return best_scores(self.names, self.chances(text, vector))

    def chances(self, text: str, vector: Array) -> Array:
        """Probabilities of all classes."""
        logits = self.bias + vector @ self.vector_weights
        for part, (buckets, found) in enumerate(self.ngrams(text)):
            logits = logits + found @ self.weights[part, buckets]
        return softmax(logits / self.temperature)


def best_scores(names: Sequence[str], chances: Array, evidence: str = "") -> Scores:
    """The best adapters of `names`, the last of which is none of them; that chance is the usual evidence."""
    best = np.argsort(-chances[:-1])[:MOST_NAMED]
    return Scores(
        {names[i]: float(chances[i]) for i in best}, evidence=evidence or f"none of them: {chances[-1]:.2f}"
    )


# -- penalised softmax regression by its dual: a coefficient for each text and class


def fit_dual(gram: Array, allowed: Array, penalty: float = PENALTY, iterations: int = ITERATIONS) -> Array:
    """Coefficients [rows, classes], by accelerated gradient steps. `gram` is [rows, rows], BIAS included.

    A row that may be of several classes is taught that it is one of them, not which.
    """
    weight = balanced_weights(allowed)
    bound = 0.5 * float(np.abs(gram * weight).sum(axis=1).max()) + penalty
    dual = ahead = np.zeros_like(allowed)
    momentum = 1.0
    for _ in range(iterations):
        chances = softmax(product_in_pieces(gram, ahead))
        target = chances * allowed
        target /= np.maximum(target.sum(axis=1, keepdims=True), 1e-9)
        step = ahead - (weight[:, None] * (chances - target) + penalty * ahead) / bound
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = step + (momentum - 1) / following * (step - dual)
        dual, momentum = step, following
    return dual


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances: Array = powers / powers.sum(axis=-1, keepdims=True)
    return chances


def balanced_weights(allowed: Array) -> Array:
    """Row weights that sum to 1, each class with the same share of them."""
    single = allowed.sum(axis=1) == 1
    counts = np.maximum(allowed[single].sum(axis=0), 1)
    weight = (allowed / counts).max(axis=1)
    shares: Array = (weight / weight.sum()).astype(np.float32)
    return shares


# -- matrix products in pieces too small for BLAS to start threads


def product_in_pieces(left: Array, right: Array) -> Array:
    """`left @ right`, a few rows at a time."""
    rows = max(16, TILE**3 // max(1, right.size))
    return np.concatenate([left[i : i + rows] @ right for i in range(0, len(left), rows)])


def gram_in_pieces(rows: Array) -> Array:
    """`rows @ rows.T` [rows, rows] in tiles, each product of two rows made once."""
    count, size = rows.shape
    made = np.zeros((count, count), rows.dtype)
    for k in range(0, size, TILE):
        columns = np.ascontiguousarray(rows[:, k : k + TILE])
        for i in range(0, count, TILE):
            left = columns[i : i + TILE]
            for j in range(i, count, TILE):
                made[i : i + TILE, j : j + TILE] += left @ columns[j : j + TILE].T
    _mirror(made)
    return made


def sparse_gram(rows: Array, columns: Array, values: Array, count: int) -> Array:
    """The same for a sparse matrix of `count` rows, given by its entries, which are sorted by row.

    Columns that many rows have go through dense products, so that long texts cost no more than those; for
    the others only pairs of entries are multiplied.
    """
    often = np.bincount(columns)
    common = often > COMMON * count
    rare = ~common[columns]
    made = _pairwise_gram(rows[rare], columns[rare], values[rare], count)
    rows, columns, values = rows[~rare], columns[~rare], values[~rare]
    place = (np.cumsum(common) - 1)[columns]
    size = int(common.sum())
    for start in range(0, size, WIDTH):
        now = (place >= start) & (place < start + WIDTH)
        dense = np.zeros((count, min(WIDTH, size - start)), values.dtype)
        dense[rows[now], place[now] - start] = values[now]
        made += gram_in_pieces(dense)
    return made


def _pairwise_gram(rows: Array, columns: Array, values: Array, count: int) -> Array:
    """A row meets the later entries of each of its columns."""
    order = np.argsort(columns, kind="stable")  # by column, there by row
    others, factors = rows[order], values[order].astype(np.float64)
    ends = np.searchsorted(columns[order], columns, side="right")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    bounds = np.searchsorted(rows, np.arange(count + 1))
    made = np.zeros((count, count), values.dtype)
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        place = places[first:last]
        lengths = ends[first:last] - place
        met = np.repeat(place - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        products = factors[met] * np.repeat(factors[place], lengths)
        made[i] = np.bincount(others[met], products, count)
    _mirror(made)
    return made


def _mirror(made: Array) -> None:
    """Copy what is above the diagonal below it."""
    for i in range(len(made)):
        made[i + 1 :, i] = made[i, i + 1 :]


# -- hashed word and character n-grams


class Ngrams:
    """Inverse document frequencies learned from texts; then unit vectors of texts, part by part.

    Buckets never seen in training keep their share of a vector's length: strange words shrink the evidence
    of the others.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.rows = [list(_blocks(text)) for text in texts]
        seen = np.zeros((PARTS, BUCKETS), np.float32)
        for row in self.rows:
            for k, (buckets, _) in enumerate(row):
                seen[k, buckets] += 1
        self.idf = np.log((1 + len(texts)) / (1 + seen)) + 1
        self.rows = [self._weighed(row) for row in self.rows]

    @classmethod
    def of(cls, idf: Array) -> Ngrams:
        """With frequencies [PARTS, BUCKETS] that were learned before."""
        made = cls(())
        made.idf = idf
        return made

    def __call__(self, text: str) -> list[Block]:
        """Buckets and values of each part."""
        return self._weighed(_blocks(text))

    def gram(self) -> Array:
        """Products of each two texts learned from, summed over the parts, [texts, texts]."""
        blocks = [
            (part * BUCKETS + found, values) for row in self.rows for part, (found, values) in enumerate(row)
        ]
        sizes = [sum(len(found) for found, _ in row) for row in self.rows]
        columns, values = (np.concatenate(side) for side in zip(*blocks, strict=True))
        return sparse_gram(np.repeat(np.arange(len(sizes)), sizes), columns, values, len(sizes))

    def _weighed(self, row: Iterator[Block] | list[Block]) -> list[Block]:
        weighed = []
        for k, (buckets, values) in enumerate(row):
            values = values * self.idf[k, buckets]
            weighed.append((buckets, values / (np.linalg.norm(values) or 1.0)))
        return weighed


def _blocks(text: str) -> Iterator[Block]:
    parts = whole_first_last(text)
    made = {part: _features(words(part)) for part in dict.fromkeys(parts)}
    return (made[part] for part in parts)


def _features(tokens: Sequence[str]) -> Block:
    """Words, pairs, first and last words, and 3 to 5 grams of bytes."""
    marked = [f"^{w}" for w in tokens[:MARKED]] + [f"{w}$" for w in tokens[-MARKED:]]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    named = [zlib.crc32(t.encode()) for t in (*tokens, *pairs, *marked)]
    grams = _byte_grams(" ".join(["", *tokens, ""]).encode())
    total = np.zeros(BUCKETS, np.float32)
    for hashes, share in ((np.array(named, np.uint32), 1.0), (grams, 0.7)):
        counts = np.sqrt(np.bincount(hashes % BUCKETS, minlength=BUCKETS).astype(np.float32))
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
