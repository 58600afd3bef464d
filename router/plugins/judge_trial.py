"""Checks of one judge, for `plugins doctor` and plugin authors: each lists what is wrong."""

from __future__ import annotations

from collections.abc import Callable

from router.experiments.judges import REFERENCE, Case, Judge, Judgement
from router.plugins.judges import valid
from router.plugins.samples import ODD_TEXTS
from router.types import Request, Turn

REQUEST = Request("sample", turns=(Turn("user", "Is asthma chronic?"),), labels={REFERENCE: "yes"})
ANSWERS = ("yes", "No.", "Yes, asthma is a chronic disease of the airways.", "I do not know")

JudgeCheck = Callable[[Judge], list[str]]


def _judged(judge: Judge, served: str, shadow: str) -> Judgement | None:
    return judge.judge(Case(REQUEST, served, shadow))


def prepared(judge: Judge) -> list[str]:
    """It binds the base and warms up."""
    from router.plugins.stand_in import StandInBase

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
