"""The adapters whose examples are nearest to a request, of thousands: one more costs the others nothing.

Speaks for adapters that no calibration knows. An adapter is learned by itself, in a fraction of a second, and
what was learned is kept in the state folder. Beside the encoder a request takes one or two milliseconds.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from router import __version__, hookimpl
from router.classifiers.caches import FitCache, VectorCache, in_parts
from router.classifiers.contract import softmax
from router.classifiers.nearest import (
    BackgroundNegatives,
    LinearScorer,
    NearestOwner,
    Neighbours,
    inverse_of,
    principal,
)
from router.classifiers.regression import file_digest, read_background, spread_evenly
from router.classifiers.texts import whole_first_last
from router.models.encoder import SIZE, Reader, sentence_reader
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

BACKGROUND = Path(__file__).with_name("background.txt")
STRANGERS = Path(__file__).with_name("strangers.txt")
MOST_EXAMPLES = 200  # of an adapter
MOST_NAMED = 8  # adapters in one answer
NEAR = 16  # adapters that are judged because an example of theirs is near
BROAD, MOST_BROAD = 24, 512  # with more examples than this an adapter is judged in any case; most of those
AT_ONCE = 32  # adapters whose examples are encoded together
SHARED = (
    64  # adapters at most whose vectors are shared with other classifiers, which learn no more than these
)
TOLD = 1000  # adapters between two words in the log
SHARPNESS = 0.1  # of a score, that makes the chances e times as large
PARTS = 3  # the whole, the first sentence, the last one
STEEPEST = 50.0  # of an exponent
NOTHING = np.zeros((0, PARTS * SIZE), np.float32)
Texts = tuple[str, ...]
Read = Callable[[Collection[str]], Iterable[tuple[str, Array]]]


class Nearest(Classifier):
    """Retrieve, then judge. Adapters with an example among the nearest are judged, each by what tells
    its examples from requests that are nobody's; the chances are a softmax of how far they are above their
    levels, beside "none of them" at nothing above: 0.5 means as far as the level. A request that is nearer to
    a negative example is not for that adapter.
    """

    name = "nearest"
    version = "1"
    scales = True

    def __init__(self, reader: Reader | None = None) -> None:
        """`reader`: the process's own where none is given."""
        self._reader = reader or sentence_reader()
        self._kept: VectorCache | None = None
        self._kept_strangers: FitCache | None = None
        self._negatives: BackgroundNegatives | None = None
        self._space: Neighbours | None = None
        self._verdicts: dict[str, LinearScorer] = {}
        self._broad: tuple[str, ...] = ()
        self._known: dict[str, AdapterProfile] = {}
        self._closed = False

    def close(self) -> None:
        """Give up learning."""
        self._closed = True

    def fingerprint(self) -> str:
        """What a calibration is bound to: the encoder and the strangers too."""
        texts = f"{file_digest(BACKGROUND)}/{file_digest(STRANGERS)}"
        return f"{super().fingerprint()}/{self._reader.maker}/{texts}"

    def keep(self, folder: Path) -> None:
        """Vectors, and what is made of the strangers, outlive the process there."""
        self._kept = VectorCache(folder / "vectors.sqlite", self.fingerprint())
        self._kept_strangers = FitCache(folder / "strangers")

    def warmup(self) -> None:
        """Load the encoder and read the strangers. Raises ConfigError where there is no encoder."""
        self._reader.warmup()
        made = self._of_strangers()
        self._negatives = BackgroundNegatives(made["vectors"], made["inverse"])
        self._space = Neighbours(made["basis"])

    def _of_strangers(self) -> Mapping[str, Array]:
        """Their vectors, the inverse of those, and the directions in which they differ."""
        kept = self._kept_strangers
        said = f"{__version__}/{self.fingerprint()}/{self._reader.maker}"
        key = hashlib.sha256(said.encode()).digest()
        if kept is not None and (found := kept.find(key)) is not None:
            return found
        texts = tuple(text for path in (BACKGROUND, STRANGERS) for text in read_background(path, ()))
        vectors = self._read(texts, self._reader.learned)
        made = {"vectors": vectors, "inverse": inverse_of(vectors), "basis": principal(vectors)}
        if kept is not None:
            kept.put(key, made)
        return made

    def _read(self, texts: Sequence[str], read: Read) -> Array:
        """[texts, 3 * 384] unit vectors: whole, first and last sentence side by side."""
        pieces = [whole_first_last(text) for text in texts]
        vectors = {}
        for piece, vector in read({piece for three in pieces for piece in three}):
            if self._closed:
                raise RuntimeError("closed while learning")
            vectors[piece] = vector
        return _join(pieces, vectors)

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Learn those that came or changed, forget those that went; requests go on meanwhile."""
        space, first = self._space, not self._known
        if space is None:
            raise RuntimeError("not warmed up")
        wanted = {adapter.name: adapter for adapter in adapters}
        for name in self._known.keys() - wanted.keys():
            self._forget(name, space)
        new = [a for a in adapters if not _same(a, self._known.get(a.name))]
        read = self._reader.learned if len(adapters) <= SHARED else self._reader.each
        for done, (adapter, vectors, against, verdict) in enumerate(self._learned(new, read), 1):
            if self._closed:
                raise RuntimeError("closed while learning")
            if verdict is None:
                self._forget(adapter.name, space)
            else:
                self._verdicts[adapter.name] = verdict
                space.put(adapter.name, vectors, against)
            self._known[adapter.name] = adapter
            if done % TOLD == 0:
                log.info("nearest has learned %d of %d adapters", done, len(new))
        broad = (name for name, rows in space.owners.items() if len(rows) > BROAD)
        self._broad = tuple(islice(broad, MOST_BROAD))
        if self._kept is not None and first:
            self._kept.only(self._kept.key(texts) for a in adapters for texts in (*learn_texts(a), judged(a)))

    def _forget(self, name: str, space: Neighbours) -> None:
        space.drop(name)
        self._verdicts.pop(name, None)
        self._known.pop(name, None)

    def _learned(
        self, adapters: Sequence[AdapterProfile], read: Read
    ) -> Iterator[tuple[AdapterProfile, Array, Array, LinearScorer | None]]:
        """Each with the vectors of its examples and of its negative ones; no verdict where there are none."""
        for some in in_parts(adapters, AT_ONCE):
            learned = [learn_texts(adapter) for adapter in some]
            vectors = self._of({texts for both in learned for texts in both if texts}, read)
            judged_before = self._find({judged(adapter) for adapter in some})
            made: dict[Texts, Array] = {}
            for adapter, (positive, negative) in zip(some, learned, strict=True):
                if not positive or self._negatives is None:
                    yield adapter, NOTHING, NOTHING, None
                    continue
                own, against = vectors[positive], vectors.get(negative, vectors[positive][:0])
                if (packed := judged_before.get(judged(adapter))) is None:
                    packed = made[judged(adapter)] = self._negatives.learn(own, against).packed()
                yield adapter, own, against, LinearScorer.of(packed)
            self._keep(made)

    def _of(self, wanted: Collection[Texts], read: Read) -> dict[Texts, Array]:
        """Vectors of sequences of texts, those kept from the file."""
        there = self._find(wanted)
        made = self._made([texts for texts in wanted if texts not in there], read)
        self._keep(made)
        return there | made

    def _find(self, wanted: Collection[Texts]) -> dict[Texts, Array]:
        if self._kept is None:
            return {}
        keys = {self._kept.key(texts): texts for texts in wanted}
        return {keys[key]: vectors for key, vectors in self._kept.find(keys).items()}

    def _keep(self, made: Mapping[Texts, Array]) -> None:
        if self._kept is not None and made:
            self._kept.add({self._kept.key(texts): vectors for texts, vectors in made.items()})

    def _made(self, wanted: Collection[Texts], read: Read) -> dict[Texts, Array]:
        rows = iter(self._read([text for texts in wanted for text in texts], read))
        return {texts: np.stack([next(rows) for _ in texts]) for texts in wanted}

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text, or no adapter is near."""
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if self._space is None or not self._known or not asked:
            return answers
        pieces = [whole_first_last(requests[i].text) for i in asked]
        vectors = _join(pieces, self._reader.lately({piece for three in pieces for piece in three}))
        for i, vector in zip(asked, vectors, strict=True):
            answers[i] = self._scores(vector, self._space.near(vector, NEAR))
        return answers

    def _scores(self, vector: Array, found: Sequence[NearestOwner]) -> Scores | None:
        """Chances of those that are near or broad, and not nearer to what they must not have."""
        barred = {near.owner for near in found if near.against >= near.similarity}
        named = dict.fromkeys([near.owner for near in found] + list(self._broad))
        above = {
            name: verdict.above(vector)
            for name in named
            if name not in barred and (verdict := self._verdicts.get(name)) is not None
        }
        if not above:
            return None
        best = sorted(above, key=above.__getitem__, reverse=True)[:MOST_NAMED]
        chances = softmax([*(min(above[name] / SHARPNESS, STEEPEST) for name in best), 0.0])
        verdict = self._verdicts[best[0]]
        said = (
            f"{best[0]}: {above[best[0]]:+.2f} from its level; unseen, {verdict.recognised:.0%} of its own "
            f"examples reach it and {verdict.taken:.1%} of strangers"
        )
        return Scores(dict(zip(best, chances, strict=False)), evidence=said)


def judged(adapter: AdapterProfile) -> Texts:
    """Under which its verdict is kept."""
    positive, negative = learn_texts(adapter)
    return ("verdict", *positive, "but not", *negative)


def learn_texts(adapter: AdapterProfile | None) -> tuple[Texts, Texts]:
    """Texts that are for the adapter, and texts that are not. Without examples its description and keywords
    stand for them."""
    if adapter is None:
        return (), ()
    positive = spread_evenly(adapter.examples, MOST_EXAMPLES)
    if not positive:
        positive = [text for text in (adapter.description, ", ".join(adapter.keywords)) if text.strip()]
    return tuple(positive), tuple(spread_evenly(adapter.negative_examples, MOST_EXAMPLES))


def _same(adapter: AdapterProfile, known: AdapterProfile | None) -> bool:
    """Whether there is nothing new to learn of it."""
    return known is not None and (adapter is known or learn_texts(adapter) == learn_texts(known))


def _join(pieces: Sequence[tuple[str, str, str]], vectors: Mapping[str, Array]) -> Array:
    """[requests, 3 * 384] unit vectors: whole, first and last sentence side by side."""
    rows = [np.concatenate([vectors[piece] for piece in three]) for three in pieces]
    return np.stack(rows) / np.float32(PARTS**0.5) if rows else np.zeros((0, PARTS * SIZE), np.float32)


@hookimpl
def register_classifiers(register):
    """Asked after those that a calibration knows, before what needs the base."""
    register(Nearest(), priority=55)
