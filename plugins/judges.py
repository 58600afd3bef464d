"""Judges of shadow answers that need no other model: exact match, length, likelihood under the base."""

from __future__ import annotations

import unicodedata

from router import hookimpl
from router.errors import PromptTooLong
from router.judging import REFERENCE, Case, Judge, Judgement, Scorer
from router.routing import BaseModel
from router.types import Request

LENGTH_TIE = 0.1  # share of the longer answer
LIKELIHOOD_TIE = 0.05  # nats a token


class ExactMatch(Scorer):
    """1 for the right answer, else 0. The request's label `reference` holds it; without one it declines.

    Letter case, white space and punctuation around the text do not count.
    """

    name = "exact_match"
    version = "1"

    def score(self, request: Request, answer: str) -> float | None:
        """Whether the answer is the reference."""
        reference = request.labels.get(REFERENCE)
        return None if reference is None else float(_bare(answer) == _bare(reference))


class Length(Judge):
    """The shorter answer wins: words, within a tenth a tie. It says what an arm costs, not how good it is."""

    name = "length"
    version = "1"

    def judge(self, case: Case) -> Judgement:
        """By the number of words."""
        served, shadow = len(case.served.split()), len(case.shadow.split())
        near = abs(served - shadow) <= LENGTH_TIE * max(served, shadow)
        return Judgement(0 if near else (1 if shadow < served else -1), {"served": served, "shadow": shadow})


class Likelihood(Scorer):
    """Mean log-probability of the answer's tokens under the base, without any adapter; the likelier wins.

    Fluent text in the base's own manner is likely, right or wrong: read it as "strange or not". It
    declines empty answers and prompts that do not fit the base.
    """

    name = "likelihood"
    version = "1"
    margin = LIKELIHOOD_TIE

    def __init__(self) -> None:
        self._base: BaseModel | None = None

    def bind(self, base: BaseModel) -> None:
        """Keep the base."""
        self._base = base

    def score(self, request: Request, answer: str) -> float | None:
        """Nats a token, at most 0. Read in the background: requests and their classifiers go first."""
        if self._base is None:
            raise RuntimeError("the base is not bound")
        if not answer.strip():
            return None
        try:
            (found,) = self._base.likelihood(request.text, [answer], background=True)
        except PromptTooLong:
            return None
        return float(found.mean())


def _bare(text: str) -> str:
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(" .,;:!?\"'`()[]")


@hookimpl
def register_judges(register):
    """All of them; an experiment names the one it asks."""
    register(ExactMatch(), timeout_ms=1000)
    register(Length(), timeout_ms=1000)
    register(Likelihood(), timeout_ms=60_000)
