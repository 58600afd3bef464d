"""Keywords and phrases of the adapters' manifests, matched on word borders. Says which it found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router import hookimpl
from router.classifiers.texts import whole_first_last, words
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

WORD_WEIGHT = 0.4  # one word alone convinces nobody
PHRASE_WEIGHT = 0.7
SAME = 0.8  # share of common words from which a request counts as a negative example
NEGATIONS = frozenset({"not", "never", "don't", "dont", "without"})
REWORKING = frozenset({"summarize", "summarise", "summary", "tldr", "shorten", "condense", "paraphrase"}) | {
    "rewrite",
    "proofread",
    "translate",
}


@dataclass(slots=True)
class _Index:
    phrases: dict[str, list[tuple[tuple[str, ...], str, float]]] = field(default_factory=dict)
    vocabulary: dict[str, frozenset[str]] = field(default_factory=dict)
    negatives: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)  # adapters that have a task


class Keywords(Classifier):
    """Confidence 1 - (1-w1)(1-w2)... over the distinct phrases of an adapter that occur in the request.

    A phrase that several adapters claim counts the less for each. A phrase right after a negation does not
    count. A request that asks to rework a text (summarize, translate...) counts half for an adapter that does
    not have that word among its keywords: the words are those of the text, not of the request. The same where
    the first or last of several sentences has a phrase of an adapter with a task, for those with none there.
    """

    name = "keywords"
    version = "2"

    def __init__(self) -> None:
        self._index = _Index()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Index the keywords and negative examples."""
        owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for adapter in adapters:
            for phrase in dict.fromkeys(tuple(words(k)) for k in adapter.keywords):
                if phrase:
                    owners[phrase].append(adapter.name)
        index = _Index()
        for phrase, names in owners.items():
            weight = (WORD_WEIGHT if len(phrase) == 1 else PHRASE_WEIGHT) / len(names)
            index.phrases.setdefault(phrase[0], []).extend((phrase, name, weight) for name in names)
        for entries in index.phrases.values():
            entries.sort(key=lambda entry: -len(entry[0]))
        for adapter in adapters:
            index.vocabulary[adapter.name] = frozenset(w for k in adapter.keywords for w in words(k))
            index.negatives[adapter.name] = [frozenset(words(t)) for t in adapter.negative_examples]
            if adapter.task:
                index.tasks.add(adapter.name)
        self._index = index

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines requests with no keyword in them."""
        index = self._index
        return [_classify(index, request.text) for request in requests]


def _classify(index: _Index, text: str) -> Scores | None:
    whole, first, last = whole_first_last(text)
    tokens = words(whole)
    framed = _framed(index, first, last)
    asked = frozenset(tokens[:6] + tokens[-6:]) & REWORKING
    values, evidence = {}, []
    for name, found in _matches(index, tokens).items():
        if _is_negative(index, name, tokens):
            continue
        doubt = 1.0
        for weight in found.values():
            doubt *= 1 - weight
        foreign = bool(asked) and not asked & index.vocabulary[name]
        foreign = foreign or (bool(framed) and name not in framed)
        values[name] = (1 - doubt) * (0.5 if foreign else 1.0)
        evidence.append(f"{name}: {', '.join(' '.join(phrase) for phrase in found)}")
    return Scores(values, evidence="; ".join(evidence)) if values else None


def _framed(index: _Index, first: str, last: str) -> set[str]:
    """Adapters with a task that a sentence before or after the others asks for."""
    if first == last:
        return set()
    return index.tasks & {name for sentence in (first, last) for name in _matches(index, words(sentence))}


def _matches(index: _Index, tokens: list[str]) -> Mapping[str, dict[tuple[str, ...], float]]:
    """Per adapter its phrases that occur and their weights; the longest at a place hides shorter ones."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    covered: dict[str, int] = {}
    for i, token in enumerate(tokens):
        for phrase, name, weight in index.phrases.get(token, ()):
            if i < covered.get(name, 0) or tuple(tokens[i : i + len(phrase)]) != phrase:
                continue
            covered[name] = i + len(phrase)
            if NEGATIONS.isdisjoint(tokens[max(0, i - 2) : i]):
                found.setdefault(name, {})[phrase] = weight
    return found


def _is_negative(index: _Index, name: str, tokens: list[str]) -> bool:
    said = frozenset(tokens)
    return any(len(said & negative) >= SAME * len(said | negative) for negative in index.negatives[name])


@hookimpl
def register_classifiers(register):
    """Asked first: it takes some ten microseconds."""
    register(Keywords(), priority=10)
