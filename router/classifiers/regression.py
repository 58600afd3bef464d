"""What classifiers learn from adapters with: training sets, hashed n-grams, softmax regression beside a class
"none of them", and the gate that a fit sets for itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from router import __version__
from router.classifiers.contract import Scores
from router.classifiers.gate import level_of
from router.classifiers.texts import whole_first_last, words
from router.passages import has_passage
from router.types import AdapterProfile

Array = np.ndarray[Any, Any]

MAX_ROWS = 4000  # texts learned at most, spread evenly over adapters
MOST_NAMED = 8  # adapters in one answer

# -- what is learned from


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Texts and what each may be. A negative example teaches "not this adapter", not what it is instead."""

    names: tuple[str, ...]  # classes; the last, "", is none of the adapters
    texts: tuple[str, ...]
    allowed: Array  # [texts, classes], 1 where a text may be of the class
    examples: Array  # [texts], whether a text is like a request: an example of an adapter, or for none

    def key(self, *maker: object) -> bytes:
        """32 bytes: of what is learned, and of what learns it, which is the release and `maker`."""
        text = json.dumps([__version__, *map(str, maker), self.names, self.texts, self.allowed.shape])
        return hashlib.sha256(text.encode() + self.allowed.tobytes() + self.examples.tobytes()).digest()


def training_set_of(adapters: Sequence[AdapterProfile], *background: Path) -> TrainingSet | None:
    """Of all adapters of which something is known; None if there is no such adapter.

    The description of an adapter is learned as an example. Where it has none, its name and keywords are, too.
    Examples without a passage of an adapter that needs one are for none: no request like them reaches it.
    """
    taught = [(a, *both) for a in adapters if any(both := texts_of(a))]
    if not taught:
        return None
    names = (*(adapter.name for adapter, *_ in taught), "")
    each = max(8, MAX_ROWS // len(names))
    classes = np.eye(len(names), dtype=np.float32)
    rows: list[tuple[str, Array, bool]] = []
    for i, (adapter, examples, described) in enumerate(taught):
        rows += [(text, classes[i], True) for text in spread_evenly(examples, each)]
        rows += [(text, classes[i], False) for text in described]
        rows += [(t, 1 - classes[i], False) for t in spread_evenly(adapter.negative_examples, each)]
    bare = [t for a in adapters if a.needs_passage for t in a.examples if not has_passage([t])]
    general = [*bare, *(text for path in background for text in read_background(path, adapters))]
    rows += [(text, classes[-1], True) for text in general]
    texts, allowed, like_requests = zip(*rows, strict=True)
    return TrainingSet(names, texts, np.stack(allowed), np.array(like_requests))


def texts_of(adapter: AdapterProfile) -> tuple[list[str], list[str]]:
    """The examples that an adapter is learned from, and the texts that describe it."""
    examples = [text for text in adapter.examples if text.strip()]
    if adapter.needs_passage:
        examples = [text for text in examples if has_passage([text])]
    described = [adapter.description] if adapter.description.strip() else []
    if not examples and (described or adapter.keywords):
        name, keywords = adapter.name.replace("-", " "), adapter.keywords
        described += [name, *keywords, f"{name}: {', '.join(keywords)}"] if keywords else [name]
    return examples, described


def spread_evenly(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly from first to last."""
    present = [t for t in texts if t.strip()]
    step = max(1.0, len(present) / count)
    return [present[int(i * step)] for i in range(min(count, len(present)))]


def read_background(path: Path, adapters: Iterable[AdapterProfile]) -> list[str]:
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


# -- hashed word and character n-grams

BUCKETS = 1 << 11
MARKED = 6  # first and last words of the whole that also count as such
SHARES = (0.5, 0.25, 0.25)  # of the whole, the first sentence, the last one, in a product of two texts


def ngrams(texts: Sequence[str]) -> Array:
    """[texts, BUCKETS]: words, pairs, first and last words, runs of 3 to 5 bytes, of all parts of a text."""
    rows = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        parts = whole_first_last(text)
        made = {part: _counted(words(part)) for part in dict.fromkeys(parts)}
        for part, share in zip(parts, SHARES, strict=True):
            row += share * made[part]
    return rows


def _counted(tokens: Sequence[str]) -> Array:
    marked = [f"^{w}" for w in tokens[:MARKED]] + [f"{w}$" for w in tokens[-MARKED:]]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    named = [zlib.crc32(t.encode()) for t in (*tokens, *pairs, *marked)]
    grams = _byte_grams(" ".join(["", *tokens, ""]).encode())
    total = np.zeros(BUCKETS, np.float32)
    for hashes, share in ((np.array(named, np.uint32), 1.0), (grams, 0.7)):
        counts = np.sqrt(np.bincount(hashes % BUCKETS, minlength=BUCKETS).astype(np.float32))
        total += share * counts / (np.linalg.norm(counts) or 1.0)
    return total


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


# -- the regression on vectors and n-grams

NGRAMS = 0.3  # of n-grams in a product of two texts; that of their vectors counts 1
FOLDS = 4
PENALTY = 0.06  # as a share of the weight of one example: of few examples less is believed
BIAS = 0.1  # square of the constant feature
ITERATIONS = 80


@dataclass(frozen=True, slots=True)
class SoftmaxRegression:
    """Weights of a fit. `level` is the chance that routes."""

    idf: Array  # [BUCKETS]
    weights: Array  # [vector size + BUCKETS, classes]
    bias: Array  # [classes]
    level: float
    confusion: Array  # [classes, classes] of left-out examples: whose each is, and where it was routed

    @classmethod
    def fit(cls, training_set: TrainingSet, vectors: Array) -> Self:
        """Learn from the training set. `vectors` are [texts, parts * size], each part of length 1."""
        counted = ngrams(training_set.texts)
        seen = np.count_nonzero(counted, axis=0).astype(np.float32)
        idf = np.log((1 + len(counted)) / (1 + seen)) + 1
        rows = _rows(vectors, counted, idf)
        gram = rows @ rows.T + np.float32(BIAS)
        allowed = training_set.allowed
        left_out, owner, none = (
            softmax(_left_out(gram, allowed)),
            allowed.argmax(axis=1),
            allowed.shape[1] - 1,
        )
        level = level_of(
            left_out[:, :-1].max(axis=1),
            left_out[:, :-1].argmax(axis=1) == owner,
            training_set.examples & (owner < none),
            training_set.examples & (owner == none),
        )
        dual = fit_dual(gram, allowed, penalty_of(allowed), ITERATIONS)
        return cls(
            idf,
            rows.T @ dual,
            BIAS * dual.sum(axis=0),
            level,
            _confusion(left_out, allowed, training_set.examples, level),
        )

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave."""
        level = float(arrays["level"][0])
        return cls(arrays["idf"], arrays["weights"], arrays["bias"], level, arrays["confusion"])

    def arrays(self) -> dict[str, Array]:
        """All that has to be kept of it."""
        return {**asdict(self), "level": np.array([self.level], np.float32)}

    def chances(self, texts: Sequence[str], vectors: Array) -> Array:
        """[texts, classes] probabilities of the classes; the last is none of the adapters."""
        return softmax(_rows(vectors, ngrams(texts), self.idf) @ self.weights + self.bias)


def _rows(vectors: Array, counted: Array, idf: Array) -> Array:
    """Features [texts, vector size + BUCKETS]."""
    parts = vectors.reshape(len(vectors), len(SHARES), -1) * np.sqrt(np.array(SHARES, np.float32))[:, None]
    weighed = counted * idf
    weighed *= NGRAMS**0.5 / np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-9)
    return np.concatenate([parts.reshape(len(vectors), -1), weighed], axis=1, dtype=np.float32)


def _left_out(gram: Array, allowed: Array) -> Array:
    """Logits [texts, classes] of each text by a fit without it: FOLDS fits, each without a part of every
    class."""
    place = np.zeros(len(allowed), int)
    for column in np.unique(allowed, axis=0):
        same = np.flatnonzero((allowed == column).all(axis=1))
        place[same] = np.arange(len(same)) % FOLDS
    logits = np.zeros_like(allowed)
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(place != fold), np.flatnonzero(place == fold)
        penalty = penalty_of(allowed[inside])
        dual = fit_dual(gram[np.ix_(inside, inside)], allowed[inside], penalty, ITERATIONS)
        logits[outside] = gram[np.ix_(outside, inside)] @ dual
    return logits


def penalty_of(allowed: Array) -> float:
    """PENALTY times the weight that an example has where every class weighs the same (`balanced_weights`).

    The middle adapter counts, so that a few with many examples do not let the others learn theirs by heart.
    """
    examples = allowed[allowed.sum(axis=1) == 1, :-1].sum(axis=0)
    classes, middle = len(examples) + 1, float(np.median(examples))
    return PENALTY / (classes * max(1.0, middle))


def _confusion(chances: Array, allowed: Array, examples: Array, level: float) -> Array:
    best = chances[:, :-1].argmax(axis=1)
    found = np.where(chances[:, :-1].max(axis=1) >= level, best, allowed.shape[1] - 1)
    counts = np.zeros((allowed.shape[1], allowed.shape[1]), np.int32)
    np.add.at(counts, (allowed[examples].argmax(axis=1), found[examples]), 1)
    return counts


def best_scores(names: Sequence[str], chances: Array, evidence: str = "") -> Scores:
    """The best adapters of `names`, the last of which is none of them; that chance is the usual evidence."""
    best = np.argsort(-chances[:-1])[:MOST_NAMED]
    return Scores(
        {names[i]: float(chances[i]) for i in best}, evidence=evidence or f"none of them: {chances[-1]:.2f}"
    )


# -- penalised softmax regression by its dual: a coefficient for each text and class


def fit_dual(gram: Array, allowed: Array, penalty: float, iterations: int) -> Array:
    """Coefficients [rows, classes], by accelerated gradient steps. `gram` is [rows, rows], BIAS included.

    A row that may be of several classes is taught that it is one of them, not which.
    """
    weight = balanced_weights(allowed)
    bound = 0.5 * float(np.abs(gram * weight).sum(axis=1).max()) + penalty
    dual = ahead = np.zeros_like(allowed)
    momentum = 1.0
    for _ in range(iterations):
        chances = softmax(gram @ ahead)
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
