"""Softmax regression on hashed word and character n-grams, trained on the adapters' own examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router import hookimpl
from router.classifiers.caches import FitCache
from router.classifiers.regression import SoftmaxRegression, cached_regression, file_digest, training_set_of
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
PENALTY = 1e-3
TEMPERATURE = 0.5
NO_VECTOR = np.zeros(0, np.float32)


class Linear(Classifier):
    """Probabilities of the adapters beside a class "none" that is taught by general requests.

    It reads the whole request, its first and its last sentence as three texts, so that an instruction counts
    wherever it stands. Words never seen in training shrink the evidence of the others, so that strange
    requests drift to "none".
    """

    name = "linear"
    version = "2"

    def __init__(self) -> None:
        self._model: SoftmaxRegression | None = None
        self._kept: FitCache | None = None

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there."""
        self._kept = FitCache(folder / "fit")

    def fingerprint(self) -> str:
        """What a calibration is bound to: the background too."""
        return f"{super().fingerprint()}/{file_digest(BACKGROUND)}"

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Train on the examples; adapters without examples cannot be chosen."""
        learned = training_set_of(adapters, BACKGROUND)
        if learned is None:
            self._model = None
            return
        self._model = cached_regression(
            self._kept,
            self.fingerprint(),
            learned,
            lambda: np.zeros((len(learned.texts), 0), np.float32),
            PENALTY,
            TEMPERATURE,
        )

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        if model is None:
            return [None] * len(requests)
        return [model(r.text, NO_VECTOR) if r.text.strip() else None for r in requests]


@hookimpl
def register_classifiers(register):
    """Asked after the keywords, before anything that needs a model."""
    register(Linear(), priority=20)
