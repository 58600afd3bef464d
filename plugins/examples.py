"""The adapters' own examples decide: softmax regression on sentence vectors and n-grams of a request, its
first and its last sentence, beside a class "none of them", which general requests teach. Of more than MANY
adapters the nearest examples decide.

Each fit calibrates its own gate (`router/classifiers/gate.py`): examples and general requests that were left
out say from which chance on requests are routed right and few strangers are routed. Chances are shifted so
that this chance is 0.5, the confidence that routes. So more and better examples route more.

A request that is an example word for word goes to the adapter that has it. An adapter without examples is
learned from its description, name and keywords.

Needs the encoder in the model cache, which `models fetch` and the first start fill.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router import hookimpl
from router.classifiers.caches import FitCache
from router.classifiers.gate import shifted
from router.classifiers.neighbours import NearestExamples
from router.classifiers.regression import (
    SoftmaxRegression,
    TrainingSet,
    best_scores,
    file_digest,
    read_background,
    spread_evenly,
    texts_of,
    training_set_of,
)
from router.classifiers.texts import whole_first_last
from router.models.encoder import Reader, sentence_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

log = logging.getLogger(__name__)
BACKGROUND = tuple(Path(__file__).with_name(name) for name in ("background.txt", "strangers.txt"))
MANY = 300  # adapters that the regression learns at most
EACH = 32  # examples of an adapter beyond that
Array = np.ndarray[Any, Any]


class Examples(Classifier):
    """Chances of the adapters, 0.5 and more where they are enough to route."""

    name = "examples"
    version = "1"

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or sentence_reader()
        self._learned: tuple[tuple[str, ...], SoftmaxRegression | NearestExamples] | None = None  # with names
        self._owners: Mapping[str, str] = {}  # of examples, by their words
        self._vectors: dict[str, Array] = {}  # of the texts that were learned
        self._kept: FitCache | None = None
        self._closed = False

    def keep(self, folder: Path) -> None:
        """What was learned outlives the process there; vectors of texts are kept by the encoder."""
        self._kept = FitCache(folder / "fit")

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """Encoder and general requests count, too."""
        return "/".join([super().fingerprint(), self._reader.maker, *map(file_digest, BACKGROUND)])

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        self._reader.warmup()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Learn all adapters anew, encoding what is new; or find what was learned in the folder."""
        self._owners = owners_of(adapters)
        if len(adapters) > MANY:
            self._learned = self._nearest(adapters)
        elif (learned := training_set_of(adapters, *BACKGROUND)) is None:
            self._learned = None
        else:
            model = self._regression(learned)
            self._learned = learned.names, model

    def _regression(self, learned: TrainingSet) -> SoftmaxRegression:
        key = learned.key(self.fingerprint())
        if self._kept is not None and (arrays := self._kept.find(key)) is not None:
            return SoftmaxRegression.of(arrays)
        pieces = [whole_first_last(text) for text in learned.texts]
        vectors = self._read({piece for three in pieces for piece in three})
        model = SoftmaxRegression.fit(learned, _joined(pieces, vectors))
        if self._kept is not None:
            self._kept.put(key, model.arrays())
        return model

    def _nearest(self, adapters: Sequence[AdapterProfile]) -> tuple[tuple[str, ...], NearestExamples]:
        texts, owners = list[str](), list[int]()
        for place, adapter in enumerate(adapters):
            own = spread_evenly([text for some in texts_of(adapter) for text in some], EACH)
            texts += own
            owners += [place] * len(own)
        general = [text for path in BACKGROUND for text in read_background(path, adapters)]
        wholes = [whole_first_last(text)[0] for text in (*texts, *general)]
        vectors = self._read(set(wholes))
        rows = np.stack([vectors[whole] for whole in wholes])
        names = (*(adapter.name for adapter in adapters), "")
        return names, NearestExamples.fit(rows, np.array(owners + [-1] * len(general)))

    def _read(self, wanted: Collection[str]) -> dict[str, Array]:
        """Vectors of texts that are learned from."""
        known = {text: vector for text, vector in self._vectors.items() if text in wanted}
        for text, vector in self._reader.learned(wanted - known.keys()):
            if self._closed:
                raise RuntimeError("closed while learning")
            known[text] = vector
        self._vectors = known
        return known

    def findings(self) -> Mapping[str, str]:
        """How many of an adapter's examples reach it when they are left out, and who takes the others."""
        if self._learned is None or isinstance(self._learned[1], NearestExamples):
            return {}
        return reached(self._learned[0], self._learned[1].confusion)

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or nothing is known of any adapter."""
        learned = self._learned
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if learned is None or not asked:
            return answers
        names, model = learned
        texts = [requests[i].text for i in asked]
        pieces = [whole_first_last(text) for text in texts]
        vectors = self._reader.lately({piece for three in pieces for piece in three})
        if isinstance(model, NearestExamples):
            chances = np.stack([model.chances(vectors[whole], len(names)) for whole, _, _ in pieces])
        else:
            chances = model.chances(texts, _joined(pieces, vectors))
        for i, text, row in zip(asked, texts, chances, strict=True):
            if owner := self._owners.get(same(text)):
                answers[i] = Scores({owner: 1.0}, evidence="one of its examples")
                continue
            evidence = f"none of them: {row[-1]:.2f}; needed {model.level:.2f}"
            answers[i] = best_scores(names, shifted(row, model.level), evidence)
        return answers


def same(text: str) -> str:
    """What two texts of the same words have in common."""
    return " ".join(text.casefold().split())


def owners_of(adapters: Sequence[AdapterProfile]) -> dict[str, str]:
    """The adapter of each example. One that several adapters claim is nobody's, and the log says so."""
    claims: dict[str, set[str]] = {}
    for adapter in adapters:
        for text in adapter.examples:
            claims.setdefault(same(text), set()).add(adapter.name)
    if shared := {text: sorted(names) for text, names in claims.items() if len(names) > 1}:
        text, names = next(iter(shared.items()))
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        log.warning("adapters %s claim the same example %.80r%s", ", ".join(names), text, more)
    return {text: next(iter(names)) for text, names in claims.items() if len(names) == 1}


def reached(names: Sequence[str], confusion: Array) -> dict[str, str]:
    """Of each adapter, how many of its examples reach it when they are left out, and who takes the others."""
    lines = {}
    for place, name in enumerate(names[:-1]):
        row = {names[to] or "the base": int(count) for to, count in enumerate(confusion[place]) if count}
        own, total = row.pop(name, 0), int(confusion[place].sum())
        if not total:
            lines[name] = "it has no examples: it is routed to by its description and keywords alone"
            continue
        others = sorted(row.items(), key=lambda one: -one[1])
        taken = ", ".join(f"{count} to {other}" for other, count in others)
        lines[name] = f"{own} of its {total} examples reach it when they are left out" + (
            f"; {taken}" if taken else ""
        )
    return lines


def _joined(pieces: Sequence[tuple[str, str, str]], vectors: Mapping[str, Array]) -> Array:
    """[requests, 3 * 384]: whole, first and last sentence side by side."""
    return np.stack([np.concatenate([vectors[piece] for piece in three]) for three in pieces])


@hookimpl
def register_classifiers(register):
    """The classifier that decides where no other one does."""
    register(Examples(), priority=50)
