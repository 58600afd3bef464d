"""Judges, which say which of two answers to one request is better: the classes that plugins write, and how
they are registered.

A plugin's judge is one of three: a `Scorer` that gives each answer a number, a `Preference` that reads both
and names the better one, or a `Judge` of any other kind.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from router.classifiers.contract import check_instance, check_number
from router.types import Request

if TYPE_CHECKING:
    from router.classifiers.contract import BaseModel

REFERENCE = "reference"
"""Label of a request that holds the right answer, where the client knows one."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two answers to one request: the user saw `served`, nobody saw `shadow`."""

    request: Request
    served: str
    shadow: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """`result`: 1 the shadow's answer is better, 0 neither, -1 the served one is. `numbers` are kept too."""

    result: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of asking a judge. With neither a judgement nor an error it declined."""

    judgement: Judgement | None = None
    error: str = ""  # unknown, busy, timeout, breaker-open, raised, invalid, disabled, no-base


class Judge:
    """Base class. Called in threads beside the event loop, one case at a time."""

    name: str = ""
    version: str = "0"

    def bind(self, base: BaseModel) -> None:
        """Called once before the warm-up. A judge that defines it is asked
        only where there is a base."""

    def warmup(self) -> None:
        """Called once before the first case."""

    def judge(self, case: Case) -> Judgement | None:
        """None declines: the pair is not counted."""
        raise NotImplementedError


class Scorer(Judge):
    """Scores each answer by itself; the higher score wins, a difference of at most `margin` is a tie."""

    margin: float = 0.0

    def score(self, request: Request, answer: str) -> float | None:
        """None declines."""
        raise NotImplementedError

    def judge(self, case: Case) -> Judgement | None:
        """By the difference of the scores, which are kept."""
        served = self.score(case.request, case.served)
        shadow = self.score(case.request, case.shadow)
        if served is None or shadow is None:
            return None
        difference = shadow - served
        result = 0 if abs(difference) <= self.margin else (1 if difference > 0 else -1)
        return Judgement(result, {"served": served, "shadow": shadow})


class Preference(Judge):
    """Reads both answers at once, as a language model does, and may prefer whatever stands first.

    So it is asked twice, in both orders, and where it contradicts itself the pair is a tie.
    """

    def prefer(self, request: Request, first: str, second: str) -> int:
        """1 the first answer is better, -1 the second is, 0 neither."""
        raise NotImplementedError

    def judge(self, case: Case) -> Judgement | None:
        """The preference that holds in both orders."""
        forth = self.prefer(case.request, case.served, case.shadow)
        back = self.prefer(case.request, case.shadow, case.served)
        agreed = forth == -back
        return Judgement(back if agreed else 0, {"agreed": float(agreed)})


# -- how a plugin registers judges

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
