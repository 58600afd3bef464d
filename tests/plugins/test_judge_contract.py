"""The contract that authors of judges subclass, on a good judge and on bad ones."""

from __future__ import annotations

import pytest

from router.judging import Case, Judge, Judgement, Preference
from router.testing import JudgeContract
from router.types import Request


class Longer(Preference):
    name = "longer"

    def prefer(self, request: Request, first: str, second: str) -> int:
        return (len(first) > len(second)) - (len(first) < len(second))


class TestLonger(JudgeContract):
    def make(self) -> Judge:
        return Longer()


class Partial(Judge):
    name = "partial"

    def judge(self, case: Case) -> Judgement:
        return Judgement(1)


def test_a_broken_promise_fails_with_what_is_wrong() -> None:
    class Contract(JudgeContract):
        def make(self) -> Judge:
            return Partial()

    with pytest.raises(AssertionError, match="beats itself"):
        Contract().test_equal_answers_tie()
    with pytest.raises(AssertionError, match="depends on which"):
        Contract().test_order_does_not_matter()


def test_forgetting_make_is_explained() -> None:
    with pytest.raises(NotImplementedError, match="make"):
        JudgeContract().test_it_can_be_registered()
