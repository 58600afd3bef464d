"""What a classifier is: the class that a plugin writes, what its scores mean, the base model that it may ask.

`read_answers` turns whatever came back into confidences in [0, 1], or the finding that it is nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from router.types import AdapterProfile, Request, VoteError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ScoreKind = Literal["probability", "logit", "similarity"]
EVIDENCE_LIMIT = 500  # characters
SLACK = 1e-6  # float32 probabilities may sum or round past their ends


class Classifier:
    """Base class. `classify_batch` is the only method a plugin must write.

    `scales`: it tells thousands of adapters apart, and learns one that came or changed without going through
    the others again. It is fitted to all adapters and speaks for those that no calibration knows; the others
    are fitted to those that one does, or to all where they are few. Its confidence is a probability that
    holds whatever else there is: 0.5 and more, and ahead of every other adapter, routes.

    `compares`, beside `scales`: its chances compare adapters that no calibration knows with those that one
    does. Where it has an opinion, no other decides for the former without it, and it keeps a request from the
    latter that is more likely for the former (router/routing/policy.py). Without a calibration it is not
    asked.

    `foreign`: it is asked only for requests in another language than the examples, and has to come before all
    others; its opinion counts more than theirs then (router/routing/policy.py). It is warmed up and learns
    when the first such request comes.

    `needs`: what it cannot do without of the base, such as HIDDEN_STATES. Where the engine has not got it, a
    classifier is never asked, its state says why, and a calibration that was made with it is stale.
    """

    name: str = ""
    version: str = "0"
    scales: bool = False
    compares: bool = False
    foreign: bool = False
    needs: Sequence[str] = ()

    def keep(self, folder: Path) -> None:
        """Called once before the warm-up, where there is a folder that outlives the process: what it puts
        there may be gone the next time, and may be of an earlier version of itself."""

    def lacks(self) -> str:
        """Why it cannot work here, for people, such as a model that was not fetched; empty where it can.

        Called on the event loop before the warm-up. That something is lacking is no fault: the classifier is
        never asked, and its state says why.
        """
        return ""

    def bind(self, base: BaseModel) -> None:
        """Called once before the warm-up. Who defines it is asked only where there is a base."""

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Called off the request path whenever the set of adapters changes."""

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        """One entry for each request; None declines."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Called once before the first request."""

    def close(self) -> None:
        """Called once, of any thread, when it is not needed any more: a fit in progress should end soon."""

    def fingerprint(self) -> str:
        """What a calibration is bound to."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores for labels: adapter names, or domains or tasks that stand for the adapters with them.

    `probability` values lie in [0, 1]; `logit` values go through a softmax; `similarity` values
    lie in [-1, 1].
    """

    values: Mapping[str, float]
    kind: ScoreKind = "probability"
    evidence: str = ""


class BaseModel(Protocol):
    """The resident base, without any adapter. Its work goes into the steps that answer requests.

    Calls block, so they belong into `fit` and `classify_batch`, never on an event loop. They raise
    TimeoutError after ten times the classifier's limit, at least 2 s (calls in the `background` after ten
    minutes), and RouterError where the engine refuses, such as `hidden` of one without states. Texts and
    continuations of more than 512 tokens lose their middle.
    """

    @property
    def abilities(self) -> Collection[str]:
        """What its engine can do that some cannot."""
        ...

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


@dataclass(frozen=True, slots=True)
class Answer:
    """One classifier's answer to one request: confidences of labels, a refusal, or what went wrong."""

    confidences: Mapping[str, float] = field(default_factory=dict)
    declined: bool = False
    error: VoteError | Literal[""] = ""
    evidence: str = ""


DECLINED = Answer(declined=True)
INVALID = Answer(error=VoteError.INVALID)


def read_answers(returned: object, count: int) -> tuple[Answer, ...]:
    """One answer for each of `count` requests; all are invalid if the batch has another shape."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence) or len(returned) != count:
        return (INVALID,) * count
    return tuple(_read_answer(entry) for entry in returned)


def _read_answer(entry: object) -> Answer:
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
        return dict(zip(numbers, softmax(list(numbers.values())), strict=True))
    low = {"probability": 0.0, "similarity": -1.0}.get(str(kind))
    if low is None or not all(low - SLACK <= v <= 1 + SLACK for v in numbers.values()):
        return None
    return {label: min(max(value, 0.0), 1.0) for label, value in numbers.items()}


def softmax(logits: Sequence[float]) -> list[float]:
    """Chances that sum to 1."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]
