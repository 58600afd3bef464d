"""A linear probe: softmax regression on the resident base's hidden states half-way through its layers.

No second model: requests are read in the steps that answer others (Alain & Bengio 2016 on such probes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router import hookimpl
from router.classifiers.caches import FitCache, VectorCache, in_parts, pack, unpack
from router.classifiers.regression import (
    Array,
    TrainingSet,
    best_scores,
    file_digest,
    fit_dual,
    product_in_pieces,
    softmax,
    training_set_of,
)
from router.classifiers.texts import cut_middle
from router.routing import HIDDEN_STATES, BaseModel, Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
CONTEXT = (
    "Name the topic and the task of this request.\n\nRequest: "  # read before each, turns the states to it
)
DEPTH = 0.5
ENDS = 16  # tokens of both ends that also count by themselves: instructions stand there
PARTS = 3  # the whole and both ends
HEAD, TAIL = 600, 300  # characters kept of the beginning and the end
PENALTY = 2e-5
ITERATIONS = 200
BIAS = 1.0  # square of the constant feature
FIT_BATCH = 64
ARRAYS = ("mean", "scale", "weights", "bias")  # of a model, beside its names


@dataclass(frozen=True, slots=True)
class _Model:
    names: tuple[str, ...]  # classes; the last is none of the adapters
    mean: Array  # [PARTS * hidden]
    scale: Array  # [PARTS * hidden]
    weights: Array  # [PARTS * hidden, classes]
    bias: Array  # [classes]


class Probe(Classifier):
    """Probabilities of the adapters beside a class "none" that is taught by general requests."""

    name = "probe"
    version = "1"
    needs = (HIDDEN_STATES,)

    def __init__(self, depth: float = DEPTH) -> None:
        """`depth`: the share of the base's layers that a request goes through, in [0, 1]."""
        self._depth = depth
        self._base: BaseModel | None = None
        self._model: _Model | None = None
        self._vectors: dict[str, Array] = {}
        self._folder: Path | None = None
        self._kept: VectorCache | None = None
        self._kept_fit: FitCache | None = None
        self._mark = ""

    def fingerprint(self) -> str:
        """What a calibration is bound to: the background too."""
        return f"{super().fingerprint()}/{self._depth}/{file_digest(BACKGROUND)}"

    def keep(self, folder: Path) -> None:
        """States of what is learned, and what was learned, outlive the process there."""
        self._folder, self._kept_fit = folder, FitCache(folder / "fit")

    def bind(self, base: BaseModel) -> None:
        """Keep the base."""
        self._base = base

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Read the examples, those seen before from memory, and learn what tells them apart.

        Where all of that was done before with this base, it is found in the folder.
        """
        learned = training_set_of(adapters, BACKGROUND)
        if learned is None:
            self._model = None
            return
        kept = self._kept_fit
        if kept is None:
            self._model = self._learned(learned)
            return
        key = learned.key(self.fingerprint(), self._base_mark(), PENALTY, ITERATIONS)
        if (arrays := kept.find(key)) is not None:
            self._model = _Model(learned.names, **arrays)
            return
        model = self._model = self._learned(learned)
        kept.put(key, {name: getattr(model, name) for name in ARRAYS})

    def _learned(self, training_set: TrainingSet) -> _Model:
        self._read(training_set.texts)
        return _train(training_set, np.stack([self._vectors[t] for t in training_set.texts]))

    def _read(self, texts: Sequence[str]) -> None:
        """Have a vector of each of these and of no other."""
        known = {t: v for t in texts if (v := self._vectors.get(t)) is not None}
        known |= self._find([t for t in texts if t not in known])
        new = [t for t in dict.fromkeys(texts) if t not in known]
        for part in in_parts(new, FIT_BATCH):
            rows = self._hidden(part, background=True)
            made = {t: _rounded(row) for t, row in zip(part, rows, strict=True)}
            self._keep(made)
            known |= made
        self._vectors = known
        if self._kept is not None:
            self._kept.only(self._kept.key([t]) for t in known)

    def _find(self, texts: Sequence[str]) -> dict[str, Array]:
        if self._folder is None or not texts:
            return {}
        if self._kept is None:
            self._kept = VectorCache(
                self._folder / "states.sqlite", f"{self.fingerprint()}/{self._base_mark()}"
            )
        keys = {self._kept.key([t]): t for t in texts}
        return {keys[key]: rows[0] for key, rows in self._kept.find(keys).items()}

    def _base_mark(self) -> str:
        """Tells this base, its weights and arithmetic from others: what it makes of one text."""
        if not self._mark:
            self._mark = hashlib.sha256(pack(self._hidden([CONTEXT], background=True))).hexdigest()
        return self._mark

    def _keep(self, made: dict[str, Array]) -> None:
        if self._kept is not None:
            self._kept.add({self._kept.key([t]): row[None] for t, row in made.items()})

    def _hidden(self, texts: Sequence[str], background: bool = False) -> Array:
        if self._base is None:
            raise RuntimeError("the base is not bound")
        cut = [cut_middle(text, HEAD, TAIL) for text in texts]
        return self._base.hidden(cut, context=CONTEXT, depth=self._depth, ends=ENDS, background=background)

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if model is None or not asked:
            return answers
        rows = _normed(self._hidden([requests[i].text for i in asked]), model.mean, model.scale)
        for i, chances in zip(asked, softmax(rows @ model.weights + model.bias), strict=True):
            answers[i] = best_scores(model.names, chances)
        return answers


def _rounded(row: Array) -> Array:
    """As it comes back from the file, so that what is learned is the same before and after a restart."""
    same = unpack(pack(row), len(row))
    return row if same is None else same[0]


def _normed(rows: Array, mean: Array, scale: Array) -> Array:
    """Unit rows of standardised features, each part with the same share.

    Standardised, because a few features of a language model are far larger than the others.
    """
    standard = ((rows - mean) / scale).reshape(len(rows), PARTS, -1)
    standard /= np.maximum(np.linalg.norm(standard, axis=-1, keepdims=True), 1e-9) * PARTS**0.5
    return standard.reshape(len(rows), -1)


def _train(learned: TrainingSet, rows: Array) -> _Model:
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    unit = _normed(rows, mean, scale)
    dual = fit_dual(product_in_pieces(unit, unit.T) + np.float32(BIAS), learned.allowed, PENALTY, ITERATIONS)
    return _Model(learned.names, mean, scale, unit.T @ dual, BIAS * dual.sum(axis=0))


@hookimpl
def register_classifiers(register):
    """Asked after the sentence encoder: it waits for the engine's steps."""
    register(Probe(), priority=60)
