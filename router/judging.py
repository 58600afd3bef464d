"""Outcome functions: which of two answers to one request is better, as plugins write them.

A plugin's judge is one of three: a `Scorer` that gives each answer a number, a `Preference` that reads both
and names the better one, or a `Judge` of any other kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    """What came of asking a judge. With neither a judgement nor an error it declined."""

    judgement: Judgement | None = None
    error: str = ""  # unknown, busy, timeout, breaker-open, raised, invalid, disabled, no-base


class Judge:
    """Base class. Called in threads beside the event loop, one case at a time."""

    name: str = ""
    version: str = "0"

    def bind(self, base: BaseModel) -> None:
        """Called once before the warm-up. Who defines it is asked only where there is a base."""

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
