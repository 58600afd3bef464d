"""What a classifier is: the class that a plugin writes, what its scores mean, the base model that it may
ask, and how a plugin registers it.

`read_answers` turns whatever a classifier returned into confidences in [0, 1], or finds that it is invalid.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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

    `foreign`: it is asked only for requests in another language than the examples, and has to come before all
    others; without its consent they decide nothing then (router/routing/policy.py). It is warmed up and
    learns when the first such request comes.

    `needs`: what it cannot do without of the base, such as HIDDEN_STATES. Where the engine has not got it, a
    classifier is never asked, and its state says why.
    """

    name: str = ""
    version: str = "0"
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
        """Called once before the warm-up. A classifier that defines it
        gets requests only where there is a base."""

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Called off the request path whenever the set of adapters changes."""

    def findings(self) -> Mapping[str, str]:
        """What the last fit found out about adapters, by name: a line each, for people."""
        return {}

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        """One entry for each request; None declines."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Called once before the first request."""

    def close(self) -> None:
        """Called once, of any thread, when it is not needed any more: a fit in progress should end soon."""

    def fingerprint(self) -> str:
        """What a digest of the router has of it."""
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
    minutes), and RouterError where the engine refuses, such as `hidden` of one without states. Texts of
    more than 512 tokens lose their middle.
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


@dataclass(frozen=True, slots=True)
class ClassifierAnswer:
    """One classifier's answer to one request: confidences of labels, a refusal, or what went wrong."""

    confidences: Mapping[str, float] = field(default_factory=dict)
    declined: bool = False
    error: VoteError | Literal[""] = ""
    evidence: str = ""


DECLINED = ClassifierAnswer(declined=True)
INVALID = ClassifierAnswer(error=VoteError.INVALID)


def read_answers(returned: object, count: int) -> tuple[ClassifierAnswer, ...]:
    """One answer for each of `count` requests; all are invalid if the batch has another shape."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence) or len(returned) != count:
        return (INVALID,) * count
    return tuple(_read_answer(entry) for entry in returned)


def _read_answer(entry: object) -> ClassifierAnswer:
    if entry is None:
        return DECLINED
    if not isinstance(entry, Scores) or not isinstance(entry.evidence, str):
        return INVALID
    confidences = normalise(entry.values, entry.kind)
    if confidences is None:
        return INVALID
    return ClassifierAnswer(confidences, evidence=entry.evidence[:EVIDENCE_LIMIT])


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


# -- how a plugin registers classifiers

NAME_FORM = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_TIMEOUT_MS = 60_000
DEFAULT_TIMEOUT_MS = 10_000  # which only a call that hangs takes, on the slowest machine, too
PATIENCE = 2.0  # seconds that a call may wait for processor or base, or ten limits if that is longer
UNABLE = "unable"  # state of a classifier that lacks something, or needs what the base's engine has not got
ASLEEP = "asleep"  # state of one for other languages, until the first such request comes


class Registrar:
    """Collects what one plugin registers; a wrong argument raises, saying what to do."""

    def __init__(self, plugin: str) -> None:
        self.registrations: list[Registration] = []
        self._plugin = plugin

    def __call__(
        self,
        classifier: Classifier,
        *,
        priority: int = 100,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        required: bool = False,
        optional: bool = False,
    ) -> None:
        """The `register` of `register_classifiers(register)`."""
        _check_classifier(classifier)
        check_number("priority", priority, -1_000_000, 1_000_000)
        check_number("timeout_ms", timeout_ms, 1, MAX_TIMEOUT_MS)
        if required and optional:
            raise ValueError("a classifier is required or optional, not both: drop one of them")
        self.registrations.append(
            Registration(
                classifier=classifier,
                plugin=self._plugin,
                priority=priority,
                timeout=timeout_ms / 1000,
                required=bool(required),
                optional=bool(optional),
                is_async=inspect.iscoroutinefunction(classifier.classify_batch),
            )
        )


def _check_classifier(classifier: Classifier) -> None:
    check_instance(classifier, Classifier, "router.routing.Classifier")
    method = classifier.classify_batch
    if getattr(method, "__func__", None) is Classifier.classify_batch:
        raise TypeError(f"classifier {classifier.name!r} does not define classify_batch(self, requests)")
    if inspect.isasyncgenfunction(method) or inspect.isgeneratorfunction(method):
        raise TypeError(f"classify_batch of {classifier.name!r} is a generator: return a list instead")
    try:
        inspect.signature(method).bind(())
    except TypeError:
        raise TypeError(
            f"classify_batch of {classifier.name!r} must take one argument, the requests"
        ) from None


def check_instance(argument: object, base: type, where: str) -> None:
    """Raises TypeError or ValueError unless it is an instance of `base`, found at `where`, with a name."""
    if isinstance(argument, type):
        raise TypeError(
            f"register() got the class {argument.__name__}: pass an instance, {argument.__name__}()"
        )
    if not isinstance(argument, base):
        raise TypeError(f"register() got a {type(argument).__name__}: subclass {where}")
    name = getattr(argument, "name", None)
    if not isinstance(name, str) or not NAME_FORM.fullmatch(name):
        raise ValueError(
            f"{base.__name__.lower()} name {name!r}: set `name` to 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit"
        )


def check_number(name: str, value: object, low: int, high: int) -> None:
    """Raises TypeError or ValueError unless it is an int from low to high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} to {high}, got {value}")


@dataclass(slots=True)
class ClassifierHealth:
    """Live state of one classifier. Written by routing on the event loop, read by anyone."""

    state: str = "starting"  # starting, ready, failed, disabled, unable, asleep, off
    breaker: str = "closed"  # closed, open, half-open
    calls: int = 0
    requests: int = 0
    errors: int = 0  # failed calls: raised, timeout, invalid
    last_error: str = ""
    fit_error: str = ""
    stuck: int = 0  # calls that never returned
    findings: Mapping[str, str] = field(default_factory=dict)  # of the last fit, by adapter


@dataclass(frozen=True, eq=False, slots=True)
class Registration:
    """A classifier as its plugin registered it.

    `timeout`: seconds that a request may take, of processor time, or of wall time if it `is_async`.
    """

    classifier: Classifier
    plugin: str
    priority: int
    timeout: float
    required: bool
    is_async: bool
    optional: bool = False
    health: ClassifierHealth = field(default_factory=ClassifierHealth)

    @property
    def name(self) -> str:
        """The classifier's name, unique in a host."""
        return self.classifier.name

    @property
    def wants_base(self) -> bool:
        """Whether it cannot work without the base model."""
        return type(self.classifier).bind is not Classifier.bind

    @property
    def patience(self) -> float:
        """Seconds that a request may wait, and after which a call is late whatever it computed."""
        return max(PATIENCE, 10 * self.timeout)

    def status(self) -> ClassifierStatus:
        """A snapshot."""
        return ClassifierStatus(
            name=self.name,
            version=str(self.classifier.version),
            priority=self.priority,
            timeout_ms=round(self.timeout * 1000),
            required=self.required,
            **asdict(self.health),
        )


@dataclass(frozen=True, slots=True)
class ClassifierStatus:
    """One registered classifier."""

    name: str
    version: str
    priority: int
    timeout_ms: int
    required: bool
    state: str
    breaker: str
    calls: int
    requests: int
    errors: int
    last_error: str
    fit_error: str
    stuck: int
    findings: Mapping[str, str]
