"""The resident base itself judges: how likely does it hold each adapter's description, given the request?

Off unless `load_plugins` names it: on the default base, of 135 million parameters, it is slow and often wrong
(docs/plugins.md has the numbers). A larger base may do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from router import hookimpl
from router.classifiers.regression import (
    Array,
    TrainingSet,
    best_scores,
    file_digest,
    fit_dual,
    softmax,
    spread_evenly,
    training_set_of,
)
from router.classifiers.texts import cut_middle
from router.routing import BaseModel, Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
PROMPT = "{request}\n\nSay what kind of request this is and what it needs."
NONE = "General: chats, advises and writes on any other subject."
HEAD, TAIL = 600, 300  # characters kept of the beginning and the end
EXAMPLES = 12  # read of each adapter
PENALTY = 1e-3
ITERATIONS = 200
BIAS = 0.1


@dataclass(frozen=True, slots=True)
class _Model:
    names: tuple[str, ...]  # classes; the last is none of the adapters
    descriptions: tuple[str, ...]  # of each class
    mean: Array  # [descriptions] log-likelihood over the examples
    scale: Array  # [descriptions]
    weights: Array  # [descriptions, classes]
    bias: Array  # [classes]


class Llm(Classifier):
    """Softmax regression on the log-likelihoods of all descriptions, as answers to the request.

    A description's own likelihood, which has nothing to do with the request, falls out: only what the request
    adds to its mean over the examples counts (pointwise mutual information, as in Holtzman et al. 2021,
    aclanthology.org/2021.emnlp-main.564). How much that is worth is learned from a few examples.
    """

    name = "llm"
    version = "1"

    def __init__(self) -> None:
        self._base: BaseModel | None = None
        self._model: _Model | None = None
        self._known: dict[tuple[str, str], float] = {}

    def fingerprint(self) -> str:
        """What a calibration is bound to: the background too."""
        return f"{super().fingerprint()}/{file_digest(BACKGROUND)}"

    def bind(self, base: BaseModel) -> None:
        """Keep the base."""
        self._base = base

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Score a few examples of each adapter, those scored before from memory."""
        few = [
            replace(a, examples=tuple(spread_evenly(a.examples, EXAMPLES)), negative_examples=())
            for a in adapters
        ]
        learned = training_set_of(few, BACKGROUND)
        if learned is None:
            self._model = None
            return
        descriptions = (*(_description(a) for a in few if a.examples), NONE)
        known: dict[tuple[str, str], float] = {}
        for text in learned.texts:
            known |= self._remembered(text, descriptions)
        self._known = known
        rows = np.array([[known[text, d] for d in descriptions] for text in learned.texts], np.float32)
        self._model = _train(learned, descriptions, rows)

    def _remembered(self, text: str, descriptions: Sequence[str]) -> dict[tuple[str, str], float]:
        found = {(text, d): v for d in descriptions if (v := self._known.get((text, d))) is not None}
        if new := [d for d in dict.fromkeys(descriptions) if (text, d) not in found]:
            found |= {
                (text, d): v for d, v in zip(new, self._scores(text, new, background=True), strict=True)
            }
        return found

    def _scores(self, text: str, descriptions: Sequence[str], background: bool = False) -> list[float]:
        if self._base is None:
            raise RuntimeError("the base is not bound")
        prompt = PROMPT.replace("{request}", cut_middle(text, HEAD, TAIL))
        found = self._base.likelihood(prompt, descriptions, background=background)
        return [float(values.sum()) for values in found]

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model = self._model
        if model is None:
            return [None] * len(requests)
        return [self._classify(model, r.text) if r.text.strip() else None for r in requests]

    def _classify(self, model: _Model, text: str) -> Scores:
        row = np.array(self._scores(text, model.descriptions), np.float32)
        chances = softmax(_normed(row, model.mean, model.scale) @ model.weights + model.bias)
        likeliest = model.descriptions[int((row - model.mean).argmax())]
        return best_scores(model.names, chances, f"fits best: {likeliest}")


def _description(adapter: AdapterProfile) -> str:
    words = (adapter.domain, adapter.task, "questions and tasks")
    return adapter.description or " ".join(filter(None, words)) + "."


def _normed(rows: Array, mean: Array, scale: Array) -> Array:
    return (rows - mean) / scale / np.sqrt(np.float32(rows.shape[-1]))


def _train(learned: TrainingSet, descriptions: tuple[str, ...], rows: Array) -> _Model:
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    unit = _normed(rows, mean, scale)
    dual = fit_dual(unit @ unit.T + np.float32(BIAS), learned.allowed, PENALTY, ITERATIONS)
    return _Model(learned.names, descriptions, mean, scale, unit.T @ dual, BIAS * dual.sum(axis=0))


@hookimpl
def register_classifiers(register):
    """Asked last of all: one request takes two or more steps of the engine."""
    register(Llm(), priority=90, optional=True)
