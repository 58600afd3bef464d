"""How a plugin registers classifiers: the callback that it gets, and what routing gets."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, dataclass, field

from router.classifiers.contract import Classifier

NAME_FORM = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_TIMEOUT_MS = 60_000
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
class Health:
    """Live state of one classifier. Written by routing on the event loop, read by anyone."""

    state: str = "starting"  # starting, ready, failed, disabled, unable, asleep, off
    breaker: str = "closed"  # closed, open, half-open
    calls: int = 0
    requests: int = 0
    errors: int = 0  # failed calls: raised, timeout, invalid
    last_error: str = ""
    fit_error: str = ""
    stuck: int = 0  # calls that never returned


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
    health: Health = field(default_factory=Health)

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
