"""From what a classifier returned to confidences in [0, 1], or the finding that it is nonsense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, Literal, Protocol

from router.types import AdapterProfile, Request, VoteError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BaseModel"]

# What a classifier may ask of the base model that the server holds.


class BaseModel(Protocol):
    """The resident base, without any adapter. Its work goes into the steps that answer requests.

    Calls block, so they belong into `fit` and `classify_batch`, never on an event loop. They raise
    TimeoutError at the classifier's own timeout (calls in the `background` after ten minutes), and
    RouterError where the engine refuses. Texts and continuations of more than 512 tokens lose their middle.
    """

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, hidden size] mean hidden state of each text's tokens after `depth` of the layers.

        Each text is read behind `context`, whose own tokens do not count. With `ends`, [texts, 3 * hidden
        size]: the means over all tokens, over the first and over the last so many. Raises ValueError for an
        empty text.
        """
        ...

    def likelihood(
        self, prompt: str, continuations: Sequence[str], *, background: bool = False
    ) -> list[NDArray[np.float32]]:
        """Log-probability of every token of each continuation, as the answer to the user's turn `prompt`.

        The prompt is computed once for all of them and never cut: PromptTooLong where it does not fit.
        ValueError for an empty continuation.
        """
        ...


# The one class a classifier plugin implements.


ScoreKind = Literal["probability", "logit", "similarity"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores for labels: adapter names, or domains or tasks that stand for the adapters with them.

    `probability` values lie in [0, 1]; `logit` values go through a softmax; `similarity` values
    lie in [-1, 1].
    """

    values: Mapping[str, float]
    kind: ScoreKind = "probability"
    evidence: str = ""


class Classifier:
    """Base class. `classify_batch` is the only method a plugin must write."""

    name: str = ""
    version: str = "0"

    def bind(self, base: BaseModel) -> None:
        """Called once before the warm-up. Who defines it is asked only where there is a base."""

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Called off the request path whenever the set of adapters changes."""

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        """One entry for each request; None declines."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Called once before the first request."""

    def fingerprint(self) -> str:
        """What a calibration is bound to."""
        return f"{self.name}/{self.version}"


# Two axes: what a request is about (domain), and what is to be done with it (task).
#
# The policy: a task instruction beats the topic (a medical text *to summarize* is for the summarizer), and a
# bare question in a domain beats plain question answering (a question on tax law is for the lawyer).


PLAIN_TASKS = frozenset({"question-answering", "chat"})  # what any request asks for that gives no instruction
LEAST = 0.1  # confidence below which nobody takes a request from another


class Axis(StrEnum):
    """What an adapter is a specialist in."""

    TASK = "task"  # a task with an instruction of its own, whatever the topic
    DOMAIN = "domain"  # a topic
    PLAIN = "plain"  # question answering on no topic
    BOTH = "both"  # a task on a topic, or neither: takes nothing from others and yields to none


def axis_of(profile: AdapterProfile) -> Axis:
    """By the manifest's `domain` and `task`."""
    plain = profile.task in PLAIN_TASKS
    if profile.domain and (plain or not profile.task):
        return Axis.DOMAIN
    if profile.task and not profile.domain:
        return Axis.PLAIN if plain else Axis.TASK
    return Axis.BOTH


def axes_of(profiles: Iterable[AdapterProfile]) -> dict[str, Axis]:
    """Axis of each adapter by name."""
    return {profile.name: axis_of(profile) for profile in profiles}


@dataclass(frozen=True, slots=True)
class Preference:
    """Who gets a request, and who leads it but yields ("" if nobody does)."""

    winner: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """`near` is the share of the leader's confidence from which an adapter of the stronger axis wins."""

    task_first: bool = True
    domain_first: bool = True
    near: float = 0.8

    def prefer(self, confidences: Mapping[str, float], axes: Mapping[str, Axis]) -> Preference | None:
        """The adapter that wins; None if there are no confidences. Ties go to the later name."""
        ranked = sorted(((c, name) for name, c in confidences.items()), reverse=True)
        if not ranked:
            return None
        confidence, leader = ranked[0]
        for stronger in self._stronger(axes.get(leader, Axis.BOTH)):
            for other, name in ranked[1:]:
                if axes.get(name) is stronger and other >= max(LEAST, self.near * confidence):
                    return Preference(name, leader)
        return Preference(leader)

    def _stronger(self, axis: Axis) -> tuple[Axis, ...]:
        """Axes that win over this one, strongest first."""
        stronger = []
        if self.task_first and axis in (Axis.DOMAIN, Axis.PLAIN):
            stronger.append(Axis.TASK)
        if self.domain_first and axis is Axis.PLAIN:
            stronger.append(Axis.DOMAIN)
        return tuple(stronger)


EVIDENCE_LIMIT = 500
SLACK = 1e-6  # float32 probabilities may sum or round past their ends


@dataclass(frozen=True, slots=True)
class Answer:
    """One classifier's answer to one request: confidences of labels, a refusal, or what went wrong."""

    confidences: Mapping[str, float] = field(default_factory=dict)
    declined: bool = False
    error: VoteError | Literal[""] = ""
    evidence: str = ""


DECLINED = Answer(declined=True)
INVALID = Answer(error=VoteError.INVALID)


def answers(returned: object, count: int) -> tuple[Answer, ...]:
    """One answer for each of `count` requests; all are invalid if the batch has another shape."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence) or len(returned) != count:
        return (INVALID,) * count
    return tuple(_answer(entry) for entry in returned)


def _answer(entry: object) -> Answer:
    if entry is None:
        return DECLINED
    if not isinstance(entry, Scores) or not isinstance(entry.evidence, str):
        return INVALID
    confidences = normalise(entry.values, entry.kind)
    if confidences is None:
        return INVALID
    return Answer(confidences, evidence=entry.evidence[:EVIDENCE_LIMIT])


def normalise(values: object, kind: object) -> dict[str, float] | None:
    """Confidences in [0, 1]: probabilities as they are, logits by softmax, similarities cut at 0.

    None if a label is no text, a value is no finite number or lies outside the range of its kind.
    """
    if not isinstance(values, Mapping) or not values:
        return None
    numbers: dict[str, float] = {}
    for label, value in values.items():
        if not isinstance(label, str) or isinstance(value, bool) or not isinstance(value, Real):
            return None
        numbers[label] = float(value)
    if not all(map(math.isfinite, numbers.values())):
        return None
    if kind == "logit":
        return _softmax(numbers)
    low = {"probability": 0.0, "similarity": -1.0}.get(str(kind))
    if low is None or not all(low - SLACK <= v <= 1 + SLACK for v in numbers.values()):
        return None
    return {label: min(max(value, 0.0), 1.0) for label, value in numbers.items()}


def _softmax(logits: Mapping[str, float]) -> dict[str, float]:
    top = max(logits.values())
    powers = {label: math.exp(value - top) for label, value in logits.items()}
    total = sum(powers.values())
    return {label: power / total for label, power in powers.items()}
