"""Judges in plugins: what may be registered, what the host makes of it, and those that are shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from router.classifiers.fake_base import FakeBase
from router.judging import Case, Judge, Judgement, JudgeRegistrar, Preference, Scorer, is_judgement
from router.plugins import PluginHost
from router.plugins.doctor import doctor
from router.types import Request, Turn

Write = Callable[..., Path]
FirstParty = Callable[[str], ModuleType]
ROOT = Path(__file__).parents[2]
LOUD = """
from router.judging import Judgement, Judge, Scorer
class Loud(Scorer):
    name = "loud"
    def score(self, request, answer):
        return float(answer.isupper())
@hookimpl
def register_judges(register):
    register(Loud(), timeout_ms=50)
"""


class Loud(Scorer):
    name = "loud"

    def score(self, request: Request, answer: str) -> float:
        return float(answer.isupper())


class Slow(Loud):
    async def score(self, request, answer):  # type: ignore[override]
        return 1.0


class Unwritten(Preference):
    name = "unwritten"


class Nameless(Loud):
    name = ""


def case(served: str, shadow: str, **labels: str) -> Case:
    return Case(Request("r", turns=(Turn("user", "is gout chronic"),), labels=labels), served, shadow)


def test_a_judge_is_registered() -> None:
    register = JudgeRegistrar("p")
    register(Loud(), timeout_ms=250)
    (got,) = register.registrations
    assert (got.name, got.plugin, got.timeout, got.wants_base) == ("loud", "p", 0.25, False)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (Loud, r"pass an instance, Loud\(\)"),
        (object(), "subclass router.judging.Judge"),
        (Nameless(), "set `name`"),
        (Unwritten(), "does not define prefer"),
        (Slow(), "is asynchronous"),
    ],
)
def test_what_is_no_judge_is_refused(argument: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        JudgeRegistrar("p")(argument)


@pytest.mark.parametrize("timeout", [0, 10**6, 1.5, True])
def test_bad_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout_ms"):
        JudgeRegistrar("p")(Loud(), timeout_ms=timeout)


@pytest.mark.parametrize(
    ("returned", "good"),
    [
        (None, True),
        (Judgement(1, {"a": 1.0}), True),
        (Judgement(2), False),
        (1, False),
        (Judgement(0, {"a": float("nan")}), False),
        (Judgement(0, {"a": "x"}), False),  # type: ignore[dict-item]
        (Judgement(0, {str(i): 1.0 for i in range(17)}), False),
    ],
)
def test_what_a_judge_may_return(returned: object, good: bool) -> None:
    assert is_judgement(returned) is good


def test_a_preference_that_goes_with_the_order_is_a_tie() -> None:
    class First(Preference):
        def prefer(self, request: Request, first: str, second: str) -> int:
            return 1

    class Longer(Preference):
        def prefer(self, request: Request, first: str, second: str) -> int:
            return (len(first) > len(second)) - (len(first) < len(second))

    assert First().judge(case("a", "bb")) == Judgement(0, {"agreed": 0.0})
    assert Longer().judge(case("a", "bb")) == Judgement(1, {"agreed": 1.0})
    assert Longer().judge(case("aa", "b")) == Judgement(-1, {"agreed": 1.0})
    assert Longer().judge(case("a", "b")) == Judgement(0, {"agreed": 1.0})


def test_a_scorer_ties_within_its_margin() -> None:
    class Near(Scorer):
        margin = 0.5

        def score(self, request: Request, answer: str) -> float | None:
            return float(answer) if answer else None

    assert Near().judge(case("1", "1.5")) == Judgement(0, {"served": 1.0, "shadow": 1.5})
    assert Near().judge(case("1", "1.6")) == Judgement(1, {"served": 1.0, "shadow": 1.6})
    assert Near().judge(case("1", "")) is None


def test_the_host_has_them_by_name_and_reports_seconds(folder: Path, write: Write) -> None:
    write("a.py", LOUD)
    write("b.py", LOUD)
    host = PluginHost([folder])
    host.refresh()
    assert [(j.name, j.plugin) for j in host.judges().values()] == [("loud", "a")]
    first, second = host.status()
    assert ([j.name for j in first.judges], first.warnings) == (["loud"], ())
    assert second.warnings == ("judge 'loud' is not used: plugin 'a' has one of that name",)


def test_a_changed_file_brings_its_new_judge(folder: Path, write: Write) -> None:
    path = write("a.py", LOUD)
    host = PluginHost([folder])
    host.refresh()
    before = host.judges()["loud"]
    path.write_text(path.read_text().replace('"loud"', '"louder"') + "\n# longer\n")
    host.refresh()
    assert list(host.judges()) == ["louder"]
    path.unlink()
    host.refresh()
    assert not host.judges()
    assert before.name == "loud"


def test_the_doctor_finds_nothing_wrong_with_those_that_are_shipped() -> None:
    host = PluginHost([ROOT / "plugins"], "judges")
    assert doctor(host) == ()
    assert sorted(host.judges()) == ["exact_match", "length", "likelihood"]


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ("return Judgement(2)", "valid_judgements"),
        ("return Judgement(int(bool(case.shadow)))", "equal_answers_tie"),
        ("return Judgement(int(case.served != case.shadow))", "order_does_not_matter"),
        ("return Judgement(0, {'share': 1 / len(case.shadow)})", "odd_answers"),
    ],
)
def test_each_flaw_is_found_by_its_check(folder: Path, write: Write, body: str, check: str) -> None:
    code = LOUD.replace("(Scorer)", "(Judge)").replace("score(self, request, answer)", "judge(self, case)")
    write("flawed.py", code.replace("return float(answer.isupper())", body))
    found = doctor(PluginHost([folder]), 20)
    assert check in {f.check for f in found}
    assert {f.classifier for f in found} == {"loud"}


@pytest.mark.parametrize(
    ("served", "shadow", "result"),
    [("Yes", "no", -1), ("no", " YES. ", 1), ("yes", "yes", 0), ("no", "perhaps", 0), ("", "yes", 1)],
)
def test_exact_match(first_party: FirstParty, served: str, shadow: str, result: int) -> None:
    judge: Judge = first_party("judges").ExactMatch()
    judged = judge.judge(case(served, shadow, reference="yes"))
    assert judged is not None
    assert judged.result == result
    assert judge.judge(case(served, shadow)) is None


def test_length(first_party: FirstParty) -> None:
    judge: Judge = first_party("judges").Length()
    assert judge.judge(case("a b c", "a b")) == Judgement(1, {"served": 3, "shadow": 2})
    assert judge.judge(case("a b", "a b c")) == Judgement(-1, {"served": 2, "shadow": 3})
    ten, eleven = "w " * 10, "w " * 11
    assert judge.judge(case(ten, eleven)) == Judgement(0, {"served": 10, "shadow": 11})


def test_likelihood(first_party: FirstParty) -> None:
    judge: Judge = first_party("judges").Likelihood()
    with pytest.raises(RuntimeError, match="not bound"):
        judge.judge(case("a", "b"))
    judge.bind(FakeBase())
    judged = judge.judge(case("xyzzy", "is gout chronic"))  # the stand-in likes what the prompt says
    assert judged is not None
    assert judged.result == 1
    assert judged.numbers["served"] < judged.numbers["shadow"] <= 0
    assert judge.judge(case("a", " ")) is None
