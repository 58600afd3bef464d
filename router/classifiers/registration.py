"""The callback that plugins get, and what it makes of a classifier."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

from router.classifiers.contract import Classifier

# What an operator sees of plugins, their classifiers and their judges.


@dataclass(slots=True)
class Health:
    """Live state of one classifier. Written by routing on the event loop, read by anyone."""

    state: str = "starting"  # starting, ready, failed, disabled, off
    breaker: str = "closed"  # closed, open, half-open
    calls: int = 0
    requests: int = 0
    errors: int = 0  # failed calls: raised, timeout, invalid
    last_error: str = ""
    fit_error: str = ""
    stuck: int = 0  # calls that never returned


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


@dataclass(slots=True)
class JudgeHealth:
    """Live state of one judge. Written on the event loop, read by anyone."""

    breaker: str = "closed"  # closed, open, half-open
    judged: int = 0
    declined: int = 0
    errors: int = 0  # raised, timeout, invalid
    last_error: str = ""
    stuck: int = 0  # calls that have not returned yet


@dataclass(frozen=True, slots=True)
class JudgeStatus:
    """One registered judge."""

    name: str
    version: str
    timeout_ms: int
    breaker: str
    judged: int
    declined: int
    errors: int
    last_error: str
    stuck: int


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One plugin, loaded or not.

    `error` says why it, or its newest version, does not work; classifiers and judges listed beside an error
    belong to the last version that did.
    """

    name: str
    source: str  # file, entry-point, folder, allow-list
    path: str
    version: str = ""
    digest: str = ""  # sha256 of the file's bytes, hex
    enabled: bool = True
    error: str = ""
    warnings: tuple[str, ...] = ()
    classifiers: tuple[ClassifierStatus, ...] = ()
    judges: tuple[JudgeStatus, ...] = ()


NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_TIMEOUT_MS = 60_000


@dataclass(frozen=True, eq=False, slots=True)
class Registration:
    """A classifier as its plugin registered it. `timeout` in seconds."""

    classifier: Classifier
    plugin: str
    priority: int
    timeout: float
    required: bool
    is_async: bool
    optional: bool = False
    health: Health = field(default_factory=Health)

    @property
    def name(self) -> str:
        """The classifier's name, unique in a host."""
        return self.classifier.name

    @property
    def wants_base(self) -> bool:
        """Whether it cannot work without the base model."""
        return type(self.classifier).bind is not Classifier.bind

    def status(self) -> ClassifierStatus:
        """A snapshot."""
        h = self.health
        return ClassifierStatus(
            name=self.name,
            version=str(self.classifier.version),
            priority=self.priority,
            timeout_ms=round(self.timeout * 1000),
            required=self.required,
            state=h.state,
            breaker=h.breaker,
            calls=h.calls,
            requests=h.requests,
            errors=h.errors,
            last_error=h.last_error,
            fit_error=h.fit_error,
            stuck=h.stuck,
        )


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
        timeout_ms: int = 50,
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


def _check_classifier(classifier: object) -> None:
    if isinstance(classifier, type):
        raise TypeError(
            f"register() got the class {classifier.__name__}: pass an instance, {classifier.__name__}()"
        )
    if not isinstance(classifier, Classifier):
        raise TypeError(f"register() got a {type(classifier).__name__}: subclass router.routing.Classifier")
    if not isinstance(classifier.name, str) or not NAME.fullmatch(classifier.name):
        raise ValueError(
            f"classifier name {classifier.name!r}: set `name` to 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit"
        )
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


def check_number(name: str, value: object, low: int, high: int) -> None:
    """Raises TypeError or ValueError unless it is an int from low to high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} to {high}, got {value}")
