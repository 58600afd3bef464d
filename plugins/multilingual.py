"""Requests in another language than the examples, by sentence vectors of about a hundred languages.

Asked for no others. Needs multilingual-e5-small in the model cache, which `lora-router models fetch` fills;
the model is loaded when the first such request comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from router import hookimpl
from router.classifiers.caches import FitCache
from router.classifiers.gate import shifted
from router.classifiers.regression import (
    Array,
    TrainingSet,
    best_scores,
    file_digest,
    fit_dual,
    read_background,
    softmax,
    spread_evenly,
    training_set_of,
)
from router.classifiers.texts import ENGLISH, language_of, whole_first_last
from router.models import MULTILINGUAL, has_multilingual
from router.models.encoder import SIZE, Reader, multilingual_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
STRANGERS = Path(__file__).with_name("strangers.txt")
MOST_EXAMPLES = 60  # of an adapter
PARTS = 2  # the whole and the first sentence
SHARPNESS = 3.0  # length of a text's features
PENALTY, ITERATIONS = 1e-3, 100
BIAS = 0.1 * SHARPNESS**2  # square of the constant feature
FEW = 0.02  # share of strange requests in other languages that come above the level
LEVELS = (0.3, 0.5)  # between which the level is
PRIOR = 10  # texts of the mean of all other languages that a language's own mean is mixed with
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class _Model:
    names: tuple[str, ...]  # classes; the last is none of the adapters
    languages: tuple[str, ...]  # of `means`; the last, "", stands for all others
    means: Array  # [languages, SIZE]
    weights: Array  # [PARTS * SIZE, classes]
    bias: Array  # [classes]
    level: float  # chance of an adapter that few strange requests reach


class Multilingual(Classifier):
    """Softmax regression on vectors of a request and of its first sentence, beside a class "none of them".

    From each vector the mean of general requests in its language is taken away: what is left tells less of
    the language and more of what is asked. A confidence of 0.5 stands for the level that few of the built-in
    strange requests in other languages reach, none of which it learned.
    """

    name = "multilingual"
    version = "1"
    foreign = True

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or multilingual_reader()
        self._own_reader = reader is None
        self._model: _Model | None = None
        self._kept: FitCache | None = None
        self._closed = False

    def lacks(self) -> str:
        """The model, where it was not fetched."""
        if self._own_reader and not has_multilingual():
            return (
                f"requests in other languages are read without {MULTILINGUAL}; `lora-router models fetch "
                f"{MULTILINGUAL}` gets it (91 MB), then restart"
            )
        return ""

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there; vectors of texts are kept by the encoder."""
        self._kept = FitCache(folder / "fit")

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """What it learns from, beside the adapters, too."""
        return f"{super().fingerprint()}/{file_digest(BACKGROUND)}/{file_digest(STRANGERS)}"

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        self._reader.warmup()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Learn from the examples, of each adapter at most MOST_EXAMPLES; or find what was learned."""
        few = [replace(a, examples=tuple(spread_evenly(a.examples, MOST_EXAMPLES))) for a in adapters]
        training_set = training_set_of(few, BACKGROUND)
        if training_set is None:
            self._model = None
            return
        general = [text for path in (BACKGROUND, STRANGERS) for text in read_background(path, ())]
        languages = _grouped(general)
        strange = [t for t in read_background(STRANGERS, adapters) if language_of(t) not in ("", ENGLISH)]
        kept, key = self._kept, training_set.key(self.fingerprint(), self._reader.maker)
        if kept is None or (arrays := kept.find(key)) is None:
            arrays = self._learned(training_set, languages, strange)
            if kept is not None:
                kept.put(key, arrays)
        self._model = _Model(
            training_set.names,
            (*languages, ""),
            arrays["means"],
            arrays["weights"],
            arrays["bias"],
            float(arrays["level"][0]),
        )

    def _learned(
        self, training_set: TrainingSet, languages: Mapping[str, Sequence[str]], strange: Sequence[str]
    ) -> dict[str, Array]:
        pieces = {piece for text in (*training_set.texts, *strange) for piece in _pieces(text)}
        vectors: dict[str, Array] = {}
        for text, vector in self._reader.learned(pieces.union(*languages.values())):
            if self._closed:
                raise RuntimeError("closed while learning")
            vectors[text] = vector
        means = _means([[vectors[text] for text in texts] for texts in languages.values()], languages)
        model = _Model(training_set.names, (*languages, ""), means, np.zeros(0), np.zeros(0), 0.5)
        rows = np.stack([_features(model, text, vectors) for text in training_set.texts])
        gram = rows @ rows.T + np.float32(BIAS)
        dual = fit_dual(gram, training_set.allowed, PENALTY, ITERATIONS)
        weights, bias = rows.T @ dual, BIAS * dual.sum(axis=0)
        reached = [
            float(softmax(_features(model, text, vectors) @ weights + bias)[:-1].max()) for text in strange
        ]
        level = float(np.clip(np.quantile(reached, 1 - FEW) if reached else 0.0, *LEVELS))
        return {"means": means, "weights": weights, "bias": bias, "level": np.array([level], np.float32)}

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if model is None or not asked:
            return answers
        vectors = self._reader.lately({piece for i in asked for piece in _pieces(requests[i].text)})
        for i in asked:
            chances = softmax(_features(model, requests[i].text, vectors) @ model.weights + model.bias)
            answers[i] = best_scores(
                model.names, shifted(chances, model.level), f"none of them: {chances[-1]:.2f}"
            )
        return answers


def _grouped(texts: Sequence[str]) -> dict[str, list[str]]:
    """Texts by their language, those of which nothing tells beside the English ones."""
    found: dict[str, list[str]] = {ENGLISH: []}
    for text in texts:
        found.setdefault(language_of(text) or ENGLISH, []).append(text)
    return found


def _means(vectors: Sequence[Sequence[Array]], languages: Mapping[str, Sequence[str]]) -> Array:
    """[languages + 1, SIZE], the last of all languages but English."""
    sums = np.array([np.sum(of, axis=0) for of in vectors])
    counts = np.array([len(of) for of in vectors])[:, None]
    others = np.array([language != ENGLISH for language in languages])
    rest = sums[others].sum(axis=0) / max(1, counts[others].sum())
    means = (sums + PRIOR * rest) / (counts + PRIOR)
    means[~others] = sums[~others] / np.maximum(1, counts[~others])
    return np.concatenate([means, rest[None]]).astype(np.float32)


def _pieces(text: str) -> tuple[str, str]:
    return whole_first_last(text)[:PARTS]


def _features(model: _Model, text: str, vectors: Mapping[str, Array]) -> Array:
    """[PARTS * SIZE], of length SHARPNESS."""
    language = language_of(text) or ENGLISH
    place = model.languages.index(language) if language in model.languages else -1
    rows = np.stack([vectors[piece] for piece in _pieces(text)]) - model.means[place]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPSILON)
    flat: Array = rows.reshape(PARTS * SIZE) * np.float32(SHARPNESS / PARTS**0.5)
    return flat


@hookimpl
def register_classifiers(register):
    """Asked before all others, for requests in other languages only."""
    register(Multilingual(), priority=5)
