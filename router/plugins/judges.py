"""The callback that plugins get for judges, and what it makes of one."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field

from router.experiments.judges import Case, Judge, Judgement, Preference, Scorer
from router.plugins.registration import NAME, check_number
from router.plugins.status import JudgeHealth, JudgeStatus

MAX_TIMEOUT_MS = 600_000
MOST_NUMBERS = 16
METHODS = {Scorer: "score", Preference: "prefer", Judge: "judge"}  # what each kind must write


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
        raise TypeError(f"register() got a {type(judge).__name__}: subclass router.experiments.judges.Judge")
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


__all__ = ["Case", "JudgeRegistrar", "JudgeRegistration", "valid"]
