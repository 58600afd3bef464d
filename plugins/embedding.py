"""Sentence embeddings of a request, its first and its last sentence: how near they are to the examples.

The encoder was trained to place requests for one adapter together, whatever the adapter, so that a few
examples are enough. Slower than the other two and asked after them. Needs the encoder in the model cache,
which `models fetch` and the first start fill; without it this classifier is not asked and its status says
why.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from router import hookimpl
from router.classifiers import fewshot
from router.classifiers.caches import FitCache
from router.classifiers.fewshot import FEW, PARTS, FewShot
from router.classifiers.regression import (
    Block,
    Ngrams,
    SoftmaxRegression,
    TrainingSet,
    best_scores,
    cached_regression,
    file_digest,
    product_in_pieces,
    read_background,
    softmax,
    spread_evenly,
    training_set_of,
)
from router.classifiers.texts import whole_first_last
from router.models.encoder import Reader, sentence_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
STRANGERS = Path(__file__).with_name("strangers.txt")
PENALTY = 1e-3
TEMPERATURE = 1.0
# For adapters with many examples. Of the cosines to an adapter's nearest examples: a smooth maximum, and what
# it comes to in nats. None of the adapters has the cosine `NONE` or, where that is more, that of general
# requests less `LEAD`.
SMOOTH, NEAREST = 11.0, 8
SHARPNESS, NONE, LEAD, NEAREST_GENERAL = 22.0, 0.33, 0.1, 3
TINY = 1e-9
MOST_ADAPTERS = 64  # that `Newcomers` learns
Array = np.ndarray[Any, Any]


class _Model(Protocol):
    """What was learned."""

    def chances(self, texts: Sequence[str], vectors: Array) -> Array:
        """[requests, adapters + 1] of texts and their vectors [requests, 3 * 384]; the last is none of the
        adapters."""
        ...


@dataclass(frozen=True, slots=True)
class _Few:
    """For adapters with few examples."""

    shots: FewShot

    def chances(self, texts: Sequence[str], vectors: Array) -> Array:
        """By the network that was trained on other adapters."""
        return self.shots.chances(vectors, _ngrams_of(texts))


@dataclass(frozen=True, slots=True)
class _Many:
    """For adapters with many examples: the geometric mean of two opinions."""

    regression: SoftmaxRegression
    examples: _Examples

    def chances(self, texts: Sequence[str], vectors: Array) -> Array:
        """By regression and by the nearest examples."""
        regression = [self.regression.chances(t, v) for t, v in zip(texts, vectors, strict=True)]
        return softmax(
            (np.log(self.examples.chances(vectors) + TINY) + np.log(np.stack(regression) + TINY)) / 2
        )


@cache
def _background_ngrams() -> Ngrams:
    """With the frequencies in the background, which are the same for all adapters."""
    ngrams = Ngrams(read_background(BACKGROUND, ()))
    ngrams.rows.clear()
    return ngrams


def _ngrams_of(texts: Sequence[str]) -> list[list[Block]]:
    ngrams = _background_ngrams()
    return [ngrams(text) for text in texts]


@dataclass(frozen=True, slots=True)
class _Examples:
    """Vectors of the adapters' examples, adapter by adapter in the order of the training set's names, and of
    general requests."""

    rows: Array  # [examples, 3 * 384], of unit length
    ends: Array  # [adapters], of each one's rows
    general: Array  # [requests, 3 * 384], of unit length

    @classmethod
    def of(cls, taught: _Taught) -> _Examples:
        """Of what is learned from."""
        return cls(_weighed(taught.owned), taught.ends, _weighed(taught.general))

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


@dataclass(frozen=True, slots=True)
class _Taught:
    """The training set apart: those of each adapter, and general requests with strange ones."""

    owned: Array  # [examples, 3 * 384], adapter by adapter
    texts: list[str]  # of these
    ends: Array  # [adapters], of each one's rows
    described: Array  # [adapters], whether its last row is its description
    general: Array  # [requests, 3 * 384]
    negative: Array  # [negative examples, 3 * 384]
    refused: Array  # [negative examples], the adapter that each is not for

    @classmethod
    def of(
        cls, training_set: TrainingSet, vectors: Array, strangers: Array, adapters: Sequence[AdapterProfile]
    ) -> _Taught:
        """Of the vectors of the training set [texts, 3 * 384] and of strange requests."""
        places, ends = _places(training_set)
        rows = np.concatenate(places)
        texts = [training_set.texts[i] for i in rows]
        descriptions = {adapter.name: adapter.description for adapter in adapters}
        described = [
            texts[end - 1] == descriptions[name] for name, end in zip(training_set.names, ends, strict=False)
        ]
        single = training_set.allowed.sum(axis=1) == 1
        general = vectors[single & (training_set.allowed[:, -1] == 1)]
        every = np.concatenate([general, strangers])
        refused = training_set.allowed[~single].argmin(axis=1)
        return cls(vectors[rows], texts, ends, np.array(described), every, vectors[~single], refused)


class Embedding(Classifier):
    """Chances of the adapters and of "none of them", by vectors and n-grams.

    The description of an adapter counts as an example.

    Where adapters have few examples, a network that was trained on other adapters gives them
    (router/classifiers/fewshot.py). Where one has more than `FEW`, they are the geometric mean of two
    opinions: a smooth maximum of the cosines to an adapter's nearest examples, and softmax regression on
    vectors and n-grams, which gains more by further examples.

    The parts of a request are encoded apart: in a vector of the whole, a short instruction drowns in a long
    text.
    """

    name = "embedding"
    version = "4"

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or sentence_reader()
        self._learned: tuple[tuple[str, ...], _Model] | None = None  # names of the classes, and the model
        self._known: dict[str, Any] = {}
        self._kept: FitCache | None = None
        self._kept_examples: FitCache | None = None
        self._closed = False

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there; vectors of texts are kept by the encoder."""
        self._kept, self._kept_examples = FitCache(folder / "fit"), FitCache(folder / "examples")

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """What a calibration is bound to: the encoder and the general requests too."""
        texts = "/".join(map(file_digest, (BACKGROUND, STRANGERS, fewshot.WEIGHTS)))
        return f"{super().fingerprint()}/{self._reader.maker}/{texts}"

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        self._reader.warmup()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Train on vectors of the examples, encoding what is new; or find what was learned in the folder."""
        learned = training_set_of(adapters, BACKGROUND, described=True)
        if learned is None:
            self._learned = None
            return
        strangers = read_background(STRANGERS, adapters)

        @cache
        def vectors() -> tuple[Array, Array]:
            """Of the training set and of the background; read only where something was not kept."""
            read = self._vectors([*learned.texts, *strangers])
            return read[: len(learned.texts)], read[len(learned.texts) :]

        counts = np.diff(_places(learned)[1], prepend=0)
        few = counts.min() > 0 and counts.max() <= FEW
        kind: type[_Examples | FewShot] = FewShot if few else _Examples
        key = learned.key(self.fingerprint(), kind.__name__, *(a.description for a in adapters))
        arrays = None if self._kept_examples is None else self._kept_examples.find(key)
        if arrays is None:
            taught = _Taught.of(learned, *vectors(), adapters)
            arrays = asdict(_few_shot(taught) if few else _Examples.of(taught))
            if self._kept_examples is not None:
                self._kept_examples.put(key, arrays)
        if few:
            self._learned = learned.names, _Few(FewShot(**arrays))
            return
        regression = cached_regression(
            self._kept, self.fingerprint(), learned, lambda: vectors()[0], PENALTY, TEMPERATURE
        )
        self._learned = learned.names, _Many(regression, _Examples(**arrays))

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
        learned = self._learned
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if learned is None or not asked:
            return answers
        names, model = learned
        texts = [requests[i].text for i in asked]
        for i, chances in zip(asked, model.chances(texts, self._lately(texts)), strict=True):
            answers[i] = best_scores(names, chances)
        return answers

    def features(self, texts: Sequence[str]) -> tuple[Array, Array, Array]:
        """What the network for few examples gets of requests (`FewShot.features`), to train it."""
        model = None if self._learned is None else self._learned[1]
        if not isinstance(model, _Few):
            raise TypeError("these adapters have too many examples or none")
        return model.shots.features(self._lately(texts), _ngrams_of(texts))

    def _lately(self, texts: Sequence[str]) -> Array:
        """Vectors [texts, 3 * 384] of requests."""
        pieces = [whole_first_last(text) for text in texts]
        vectors: Array = _join(pieces, self._reader.lately({piece for three in pieces for piece in three}))
        return vectors


class Newcomers(Embedding):
    """The network for few examples, for adapters that no calibration knows, beside those that one does.

    It learns all adapters, of each as many examples as the network was trained for, spread evenly. Beyond
    `MOST_ADAPTERS` it declines.
    """

    name = "newcomers"
    version = "1"
    scales = True
    compares = True

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Learn them anew; the encoder keeps vectors."""
        known = [adapter for adapter in adapters if adapter.examples or adapter.description]
        few = [replace(one, examples=tuple(spread_evenly(one.examples, FEW - 1))) for one in known]
        super().fit(few if len(few) <= MOST_ADAPTERS else ())


def _places(training_set: TrainingSet) -> tuple[list[Array], Array]:
    """Rows of each adapter's examples, and how many they are up to each adapter."""
    single = training_set.allowed.sum(axis=1) == 1
    places = [np.flatnonzero(single & (column == 1)) for column in training_set.allowed.T[:-1]]
    return places, np.cumsum([len(rows) for rows in places])


def _few_shot(taught: _Taught) -> FewShot:
    ngrams = _ngrams_of(taught.texts)
    return FewShot.of(
        taught.owned,
        taught.ends,
        taught.described,
        taught.general,
        ngrams,
        taught.negative,
        taught.refused,
    )


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
    register(Embedding(), priority=50)
    register(Newcomers(), priority=56)
