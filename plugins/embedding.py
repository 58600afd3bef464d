"""Sentence embeddings (all-MiniLM-L6-v2) of a request, its first and its last sentence, beside its n-grams.

Slower than the other two and asked last. Needs the encoder in the model cache, which `models fetch` and the
first start fill; without it this classifier is not asked and its status says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router import hookimpl
from router.classifiers.kept import KeptFit
from router.classifiers.regression import Regression, file_digest, kept_regression, lessons_of
from router.classifiers.texts import whole_first_last
from router.models.encoder import Reader, sentence_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
PENALTY = 1e-3
TEMPERATURE = 1.0


class Embedding(Classifier):
    """Softmax regression on sentence vectors and n-grams, beside a class "none" taught by general requests.

    The parts of a request are encoded apart: in a vector of the whole, a short instruction drowns in a long
    text.
    """

    name = "embedding"
    version = "2"

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or sentence_reader()
        self._model: Regression | None = None
        self._known: dict[str, Any] = {}
        self._kept: KeptFit | None = None
        self._closed = False

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there; vectors of texts are kept by the encoder."""
        self._kept = KeptFit(folder / "fit")

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """What a calibration is bound to: the background too."""
        return f"{super().fingerprint()}/{file_digest(BACKGROUND)}"

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        self._reader.warmup()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Train on vectors of the examples, encoding what is new; or find what was learned in the folder."""
        learned = lessons_of(adapters, BACKGROUND)
        if learned is None:
            self._model = None
            return
        self._model = kept_regression(
            self._kept,
            f"{self.fingerprint()}/{self._reader.maker}",
            learned,
            lambda: self._vectors(learned.texts),
            PENALTY,
            TEMPERATURE,
        )

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
        for i, vector in zip(asked, vectors, strict=True):
            answers[i] = model(requests[i].text, vector)
        return answers


def _join(pieces: Sequence[tuple[str, str, str]], vectors: dict[str, Any]) -> Any:
    """[requests, 3 * 384]: whole, first and last sentence side by side."""
    return np.stack([np.concatenate([vectors[piece] for piece in three]) for three in pieces])


@hookimpl
def register_classifiers(register):
    """Asked last, for requests that are still undecided."""
    register(Embedding(), priority=50, timeout_ms=1000)
