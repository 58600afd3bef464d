"""Judges of plugins: the callback that registers them, and the checks of one, for `plugins doctor`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from router.classifiers.registration import NAME, JudgeHealth, JudgeStatus, check_number
from router.judging import REFERENCE, Case, Judge, Judgement, Preference, Scorer
from router.plugins.trial import ODD_TEXTS
from router.types import Request, Turn

MAX_TIMEOUT_MS = 600_000
MOST_NUMBERS = 16
METHODS = {Scorer: "score", Preference: "prefer", Judge: "judge"}  # what each kind must write
REQUEST = Request("sample", turns=(Turn("user", "Is asthma chronic?"),), labels={REFERENCE: "yes"})
ANSWERS = ("yes", "No.", "Yes, asthma is a chronic disease of the airways.", "I do not know")
JudgeCheck = Callable[[Judge], list[str]]


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
        h = self.health
        return JudgeStatus(
            name=self.name,
            version=str(self.judge.version),
            timeout_ms=round(self.timeout * 1000),
            breaker=h.breaker,
            judged=h.judged,
            declined=h.declined,
            errors=h.errors,
            last_error=h.last_error,
            stuck=h.stuck,
        )


class JudgeRegistrar:
    """Collects what one plugin registers; a wrong argument raises, saying what to do."""

    def __init__(self, plugin: str) -> None:
        self.registrations: list[JudgeRegistration] = []
        self._plugin = plugin

    def __call__(self, judge: Judge, *, timeout_ms: int = 5000) -> None:
        """The `register` of `register_judges(register)`."""
        _check(judge)
        check_number("timeout_ms", timeout_ms, 1, MAX_TIMEOUT_MS)
        self.registrations.append(JudgeRegistration(judge, self._plugin, timeout_ms / 1000))


def _check(judge: object) -> None:
    if isinstance(judge, type):
        raise TypeError(f"register() got the class {judge.__name__}: pass an instance, {judge.__name__}()")
    if not isinstance(judge, Judge):
        raise TypeError(f"register() got a {type(judge).__name__}: subclass router.judging.Judge")
    if not isinstance(judge.name, str) or not NAME.fullmatch(judge.name):
        raise ValueError(
            f"judge name {judge.name!r}: set `name` to 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit"
        )
    kind = next(k for k in METHODS if isinstance(judge, k))
    method = getattr(judge, METHODS[kind])
    if getattr(method, "__func__", None) is getattr(kind, METHODS[kind]):
        raise TypeError(f"judge {judge.name!r} does not define {METHODS[kind]}")
    if inspect.iscoroutinefunction(method):
        raise TypeError(
            f"{METHODS[kind]} of {judge.name!r} is asynchronous: it has a thread of its own and may block"
        )


def valid(returned: object) -> bool:
    """Whether a judge may return this."""
    if returned is None:
        return True
    if not isinstance(returned, Judgement) or returned.result not in (-1, 0, 1):
        return False
    try:
        values = [float(value) for value in returned.numbers.values()]
    except (TypeError, ValueError, AttributeError):
        return False
    return len(values) <= MOST_NUMBERS and all(map(math.isfinite, values))


def _judged(judge: Judge, served: str, shadow: str) -> Judgement | None:
    return judge.judge(Case(REQUEST, served, shadow))


def prepared(judge: Judge) -> list[str]:
    """It binds the base and warms up."""
    from router.plugins.trial import StandInBase

    judge.bind(StandInBase())
    judge.warmup()
    return []


def valid_judgements(judge: Judge) -> list[str]:
    """A Judgement of -1, 0 or 1 with finite numbers, or None."""
    cases = [(a, b) for a in ANSWERS for b in ANSWERS]
    bad = [case for case in cases if not valid(_judged(judge, *case))]
    return (
        [f"{len(bad)} of {len(cases)} judgements are invalid (Judgement of -1, 0, 1 or None)"] if bad else []
    )


def odd_answers(judge: Judge) -> list[str]:
    """Empty, huge and strange answers are judged or declined."""
    problems = []
    for text in ODD_TEXTS:
        try:
            found = _judged(judge, "yes", text)
        except Exception as error:
            problems.append(f"{text[:12]!r} ({len(text)} characters) raised {type(error).__name__}")
            continue
        if not valid(found):
            problems.append(f"{text[:12]!r} ({len(text)} characters) got an invalid judgement")
    return problems


def equal_answers_tie(judge: Judge) -> list[str]:
    """The same text twice is no better than itself."""
    found = [(text, _judged(judge, text, text)) for text in ANSWERS]
    return [f"{text!r} beats itself" for text, one in found if one is not None and one.result != 0]


def order_does_not_matter(judge: Judge) -> list[str]:
    """What wins as the shadow's answer wins as the served one too."""
    problems = []
    for first in ANSWERS:
        for second in ANSWERS:
            forth, back = _judged(judge, first, second), _judged(judge, second, first)
            if forth is not None and back is not None and forth.result != -back.result:
                problems.append(f"{first!r} against {second!r} depends on which of them was served")
    return problems[:3]


JUDGE_CHECKS: tuple[JudgeCheck, ...] = (
    prepared,
    valid_judgements,
    odd_answers,
    equal_answers_tie,
    order_does_not_matter,
)
