"""Sentence embeddings of a request, its first and its last sentence: how near they are to the examples, and a
regression on them and on n-grams.

The encoder was trained to place requests for one adapter together, whatever the adapter, so that a few
examples are enough. Slower than the other two and asked after them. Needs the encoder in the model cache,
which `models fetch` and the first start fill; without it this classifier is not asked and its status says
why.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from router import hookimpl
from router.classifiers.kept import KeptFit
from router.classifiers.regression import (
    Lessons,
    Regression,
    best_scores,
    file_digest,
    kept_regression,
    lessons_of,
    product_in_pieces,
    read_background,
    softmax,
)
from router.classifiers.texts import whole_first_last
from router.models.encoder import Reader, sentence_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
STRANGERS = Path(__file__).with_name("strangers.txt")
PENALTY = 1e-3
TEMPERATURE = 1.0
# Of the cosines to an adapter's nearest examples: a smooth maximum, and what it comes to in nats. None of the
# adapters has the cosine `NONE` or, where that is more, that of general requests less `LEAD`. Chosen with
# recipes/routing/company and hospital.
PARTS = (1.0, 0.5, 0.5)  # weights of the whole, the first sentence and the last one
SMOOTH, NEAREST = 11.0, 8
SHARPNESS, NONE, LEAD, NEAREST_GENERAL = 22.0, 0.33, 0.1, 3
TINY = 1e-9
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Examples:
    """Vectors of the adapters' examples, adapter by adapter in the order of the lessons' names, and of
    general requests."""

    rows: Array  # [examples, 3 * 384], of unit length
    ends: Array  # [adapters], of each one's rows
    general: Array  # [requests, 3 * 384], of unit length

    @classmethod
    def of(cls, lessons: Lessons, vectors: Array, strangers: Array) -> _Examples:
        """Of the vectors of the lessons [texts, 3 * 384] and of strange requests."""
        single = lessons.allowed.sum(axis=1) == 1
        places = [np.flatnonzero(single & (column == 1)) for column in lessons.allowed.T[:-1]]
        ends = np.cumsum([len(rows) for rows in places])
        general = vectors[single & (lessons.allowed[:, -1] == 1)]
        owned = vectors[np.concatenate(places)]
        return cls(_weighed(owned), ends, _weighed(np.concatenate([general, strangers])))

    def chances(self, vectors: Array) -> Array:
        """[requests, adapters + 1] of vectors [requests, 3 * 384]; the last is none of the adapters."""
        weighed = _weighed(vectors)
        cosines = product_in_pieces(weighed, self.rows.T)
        near = np.zeros((len(vectors), len(self.ends) + 1), np.float32)
        for i, (start, end) in enumerate(itertools.pairwise((0, *self.ends.tolist()))):
            near[:, i] = _smooth_maximum(cosines[:, start:end], NEAREST)
        general = _smooth_maximum(product_in_pieces(weighed, self.general.T), NEAREST_GENERAL) - LEAD
        near[:, -1] = np.logaddexp(SMOOTH * general, SMOOTH * NONE) / SMOOTH
        return softmax(SHARPNESS * near)


class Embedding(Classifier):
    """The geometric mean of two opinions, each with a class "none of them".

    One is a smooth maximum of the cosines to an adapter's nearest examples: it is right with few examples.
    The other is softmax regression on vectors and n-grams, taught "none" by general requests: it gains more
    by further examples. The description of an adapter counts as an example.

    The parts of a request are encoded apart: in a vector of the whole, a short instruction drowns in a long
    text.
    """

    name = "embedding"
    version = "3"

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or sentence_reader()
        self._model: tuple[Regression, _Examples] | None = None
        self._known: dict[str, Any] = {}
        self._kept: KeptFit | None = None
        self._kept_examples: KeptFit | None = None
        self._closed = False

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there; vectors of texts are kept by the encoder."""
        self._kept, self._kept_examples = KeptFit(folder / "fit"), KeptFit(folder / "examples")

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """What a calibration is bound to: the encoder and the general requests too."""
        texts = f"{file_digest(BACKGROUND)}/{file_digest(STRANGERS)}"
        return f"{super().fingerprint()}/{self._reader.maker}/{texts}"

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        self._reader.warmup()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Train on vectors of the examples, encoding what is new; or find what was learned in the folder."""
        learned = lessons_of(adapters, BACKGROUND, described=True)
        if learned is None:
            self._model = None
            return
        strangers = read_background(STRANGERS, adapters)

        @cache
        def vectors() -> tuple[Array, Array]:
            """Of the lessons and of the strangers; read only where something was not kept."""
            read = self._vectors([*learned.texts, *strangers])
            return read[: len(learned.texts)], read[len(learned.texts) :]

        regression = kept_regression(
            self._kept, self.fingerprint(), learned, lambda: vectors()[0], PENALTY, TEMPERATURE
        )
        key = learned.key(self.fingerprint(), "examples")
        arrays = None if self._kept_examples is None else self._kept_examples.find(key)
        examples = _Examples.of(learned, *vectors()) if arrays is None else _Examples(**arrays)
        if arrays is None and self._kept_examples is not None:
            self._kept_examples.put(key, asdict(examples))
        self._model = regression, examples

    def _vectors(self, texts: Sequence[str]) -> Any:
        """[texts, 3 * 384]"""
        pieces = [whole_first_last(text) for text in texts]
        wanted = {piece for three in pieces for piece in three}
        known = {text: vector for text, vector in self._known.items() if text in wanted}
        for text, vector in self._reader.learned(wanted - known.keys()):
            if self._closed:
                raise RuntimeError("closed while learning")
            known[text] = vector
        self._known = known
        return _join(pieces, known)

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if model is None or not asked:
            return answers
        pieces = [whole_first_last(requests[i].text) for i in asked]
        vectors = _join(pieces, self._reader.lately({piece for three in pieces for piece in three}))
        regression, examples = model
        near = examples.chances(vectors)
        for i, vector, chances in zip(asked, vectors, near, strict=True):
            both = np.log(chances + TINY) + np.log(regression.chances(requests[i].text, vector) + TINY)
            answers[i] = best_scores(regression.names, softmax(both / 2))
        return answers


def _smooth_maximum(cosines: Array, count: int) -> Array:
    """[rows] between the mean and the maximum of the `count` largest of each row; -1 where there are none."""
    if not cosines.shape[1]:
        return np.full(len(cosines), -1.0, np.float32)
    largest = np.sort(cosines, axis=1)[:, -count:]
    smooth: Array = np.log(np.exp(SMOOTH * largest).mean(axis=1)) / SMOOTH
    return smooth


def _weighed(vectors: Array) -> Array:
    """Rows of unit length [rows, 3 * 384], each part with its weight."""
    rows: Array = (vectors.reshape(len(vectors), len(PARTS), -1) * np.array(PARTS)[:, None]).reshape(
        len(vectors), -1
    )
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
    return rows.astype(np.float32)


def _join(pieces: Sequence[tuple[str, str, str]], vectors: dict[str, Any]) -> Any:
    """[requests, 3 * 384]: whole, first and last sentence side by side."""
    return np.stack([np.concatenate([vectors[piece] for piece in three]) for three in pieces])


@hookimpl
def register_classifiers(register):
    """Asked last, for requests that are still undecided."""
    register(Embedding(), priority=50, timeout_ms=1000)
