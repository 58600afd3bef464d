"""How a plugin registers judges, and what a judge may return."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, dataclass, field

from router.classifiers.registration import check_instance, check_number
from router.judging import Judge, Judgement, Preference, Scorer

MAX_TIMEOUT_MS = 600_000
MOST_NUMBERS = 16  # of one judgement
METHODS = {Scorer: "score", Preference: "prefer", Judge: "judge"}  # what each kind must write


class JudgeRegistrar:
    """Collects what one plugin registers; a wrong argument raises, saying what to do."""

    def __init__(self, plugin: str) -> None:
        self.registrations: list[JudgeRegistration] = []
        self._plugin = plugin

    def __call__(self, judge: Judge, *, timeout_ms: int = 5000) -> None:
        """The `register` of `register_judges(register)`."""
        _check_judge(judge)
        check_number("timeout_ms", timeout_ms, 1, MAX_TIMEOUT_MS)
        self.registrations.append(JudgeRegistration(judge, self._plugin, timeout_ms / 1000))


def _check_judge(judge: Judge) -> None:
    check_instance(judge, Judge, "router.judging.Judge")
    kind = next(k for k in METHODS if isinstance(judge, k))
    method = getattr(judge, METHODS[kind])
    if getattr(method, "__func__", None) is getattr(kind, METHODS[kind]):
        raise TypeError(f"judge {judge.name!r} does not define {METHODS[kind]}")
    if inspect.iscoroutinefunction(method):
        raise TypeError(
            f"{METHODS[kind]} of {judge.name!r} is asynchronous: it has a thread of its own and may block"
        )


def is_judgement(returned: object) -> bool:
    """Whether a judge may return this: None, or -1, 0 or 1 with finite numbers."""
    if returned is None:
        return True
    if not isinstance(returned, Judgement) or returned.result not in (-1, 0, 1):
        return False
    try:
        values = [float(value) for value in returned.numbers.values()]
    except (TypeError, ValueError, AttributeError):
        return False
    return len(values) <= MOST_NUMBERS and all(map(math.isfinite, values))


@dataclass(slots=True)
class JudgeHealth:
    """Live state of one judge. Written on the event loop, read by anyone."""

    breaker: str = "closed"  # closed, open, half-open
    judged: int = 0
    declined: int = 0
    errors: int = 0  # raised, timeout, invalid
    last_error: str = ""
    stuck: int = 0  # calls that have not returned yet


@dataclass(frozen=True, eq=False, slots=True)
class JudgeRegistration:
    """A judge as its plugin registered it. `timeout` in seconds."""

    judge: Judge
    plugin: str
    timeout: float
    health: JudgeHealth = field(default_factory=JudgeHealth)

    @property
    def name(self) -> str:
        """The judge's name, unique in a host."""
        return self.judge.name

    @property
    def wants_base(self) -> bool:
        """Whether it cannot work without the base model."""
        return type(self.judge).bind is not Judge.bind

    def status(self) -> JudgeStatus:
        """A snapshot."""
        return JudgeStatus(
            name=self.name,
            version=str(self.judge.version),
            timeout_ms=round(self.timeout * 1000),
            **asdict(self.health),
        )


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
