"""Softmax regression on hashed word and character n-grams, trained on the adapters' own examples."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router import hookimpl
from router.routing import Classifier, Scores
from router.routing.texts import ends, read_background, words
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
SIZE = 1 << 13  # hash buckets
MAX_ROWS = 4000  # examples learned at most, spread evenly over adapters
ITERATIONS = 60
BIAS = 0.1  # square of the constant feature
PENALTY = 3e-4
TEMPERATURE = 0.5
SHOWN = 8  # adapters named in one answer at most
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Model:
    names: tuple[str, ...]  # classes; the last, "", is none of them
    idf: Array  # [SIZE]
    weights: Array  # [SIZE, classes]
    bias: Array  # [classes]


class Linear(Classifier):
    """Probabilities of the adapters beside a class "none" that is taught by general requests.

    A negative example teaches only "not this adapter". Words never seen in training shrink the evidence of
    the others, so that strange requests drift to "none".
    """

    name = "linear"
    version = "1"

    def __init__(self) -> None:
        self._model: _Model | None = None

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Train on the examples; adapters without examples cannot be chosen."""
        learnable = [a for a in adapters if a.examples]
        self._model = _train(learnable) if learnable else None

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        if model is None:
            return [None] * len(requests)
        return [_classify(model, r.text) if r.text.strip() else None for r in requests]


def _classify(model: _Model, text: str) -> Scores:
    buckets, values = _features(text)
    values = values * model.idf[buckets]
    values /= np.linalg.norm(values) or 1.0
    logits = (values @ model.weights[buckets] + model.bias) / TEMPERATURE
    powers = np.exp(logits - logits.max())
    chances = powers / powers.sum()
    best = np.argsort(-chances[:-1])[:SHOWN]
    return Scores(
        {model.names[i]: float(chances[i]) for i in best}, evidence=f"none of them: {chances[-1]:.2f}"
    )


def _features(text: str) -> tuple[Array, Array]:
    """Buckets and their values: words, pairs, first and last words, and 3 to 5 grams of bytes."""
    text = ends(text, 600, 300)
    tokens = words(text)
    marked = [f"^{w}" for w in tokens[:6]] + [f"{w}$" for w in tokens[-6:]]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    named = [zlib.crc32(t.encode()) for t in (*tokens, *pairs, *marked)]
    grams = _byte_grams(" ".join(["", *tokens, ""]).encode())
    blocks = ((np.array(named, np.uint32), 1.0), (grams, 0.7))
    total = np.zeros(SIZE, np.float32)
    for hashes, share in blocks:
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


def _train(adapters: Sequence[AdapterProfile]) -> _Model:
    names = (*(a.name for a in adapters), "")
    each = max(8, MAX_ROWS // len(names))
    texts: list[str] = []
    allowed: list[Array] = []  # which classes a row may be
    classes = np.eye(len(names), dtype=np.float32)
    for i, adapter in enumerate(adapters):
        texts += (positive := _spread(adapter.examples, each))
        allowed += [classes[i]] * len(positive)
        texts += (negative := _spread(adapter.negative_examples, each))
        allowed += [1 - classes[i]] * len(negative)
    texts += (background := read_background(BACKGROUND, adapters))
    allowed += [classes[-1]] * len(background)
    rows, idf = _matrix(texts)
    dual = _fit_dual(rows @ rows.T + BIAS, np.array(allowed))
    return _Model(names, idf, rows.T @ dual, BIAS * dual.sum(axis=0))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly from first to last."""
    kept = [t for t in texts if t.strip()]
    step = max(1.0, len(kept) / count)
    return [kept[int(i * step)] for i in range(min(count, len(kept)))]


def _matrix(texts: Sequence[str]) -> tuple[Array, Array]:
    """Unit rows [texts, SIZE] and the inverse document frequency [SIZE]."""
    rows = np.zeros((len(texts), SIZE), np.float32)
    for row, text in zip(rows, texts, strict=True):
        buckets, values = _features(text)
        row[buckets] = values
    idf = np.log((1 + len(texts)) / (1 + np.count_nonzero(rows, axis=0))).astype(np.float32) + 1
    rows *= idf
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows, idf


def _fit_dual(gram: Array, allowed: Array) -> Array:
    """Coefficients [rows, classes] of a penalised softmax regression, by accelerated gradient steps.

    A row that may be of several classes is taught that it is one of them, not which.
    """
    weight = _balance(allowed)
    bound = 0.5 * float(np.abs(gram * weight).sum(axis=1).max()) + PENALTY
    dual = ahead = np.zeros_like(allowed)
    momentum = 1.0
    for _ in range(ITERATIONS):
        logits = _product(gram, ahead)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        target = chances * allowed
        target /= np.maximum(target.sum(axis=1, keepdims=True), 1e-9)
        step = ahead - (weight[:, None] * (chances - target) + PENALTY * ahead) / bound
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = step + (momentum - 1) / following * (step - dual)
        dual, momentum = step, following
    return dual


def _product(left: Array, right: Array) -> Array:
    """Matrix product in pieces too small for BLAS to start threads, which would fight the engine's."""
    rows = max(16, 250_000 // right.size)
    return np.concatenate([left[i : i + rows] @ right for i in range(0, len(left), rows)])


def _balance(allowed: Array) -> Array:
    """Row weights that sum to 1, each class with the same share of them."""
    single = allowed.sum(axis=1) == 1
    counts = np.maximum(allowed[single].sum(axis=0), 1)
    weight = (allowed / counts).max(axis=1)
    return (weight / weight.sum()).astype(np.float32)


@hookimpl
def register_classifiers(register):
    """Asked after the keywords, before anything that needs a model."""
    register(Linear(), priority=20, timeout_ms=100)
