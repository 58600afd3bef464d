"""Every kind of wrong answer is noticed, and what is right on both sides of a change is not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from router.engine.base import Job
from router.types import SamplingParams
from tests.soak.checks import BASE, Alone, Answered, NamedAnswers, SentRequest, Truth, problem, telling
from tests.soak.journal import IN_FORCE_SECONDS, Journal

OLD, NEW, OTHER = "0a" * 32, "1b" * 32, "2c" * 32
NAMED = NamedAnswers()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """north-legal@1.0.0 was replaced a while ago; south-legal is another tenant's."""
    made = Journal(tmp_path / "journal.jsonl")
    made.path.touch()
    made.client("north-1", "north", "token", ["shared", "north-*"])
    time.sleep(0.01)
    made.begin("north-legal", "1.0.0", OLD, 1, "legal")
    made.begin("south-legal", "1.0.0", OTHER, 2, "code")
    time.sleep(0.01)
    made.begin("north-legal", "1.0.0", NEW, 3, "medical")
    made.confirm("north-legal", "1.0.0", NEW)
    made.read()
    return made


def answer(journal: Journal, asked: SentRequest, digest: str = NEW, truth: Truth = NAMED) -> Answered:
    """The right one of north-legal, to a call that began after all changes."""
    found = journal.contents["north-legal", "1.0.0"][digest]
    text = truth.text("north", "r1", found, asked.prompt)
    now = journal.current("north-legal", "1.0.0").begun + 10
    return Answered("r1", "north-legal", "1.0.0", digest, text, now, now + 1)


ASKED = SentRequest("north-1", "one two", "north-legal")


def test_right_answers_are_right(journal: Journal) -> None:
    right = answer(journal, ASKED)
    assert problem(journal, NAMED, ASKED, right) == ""
    assert problem(journal, NAMED, replace(ASKED, adapter="north-legal@1.0.0"), right) == ""
    assert problem(journal, NAMED, replace(ASKED, adapter=""), right) == ""
    begun = replace(right, text=right.text[:30], whole=False)
    assert problem(journal, NAMED, ASKED, begun) == ""
    base = replace(right, name="", version="", digest="", text=NAMED.text("north", "r1", None, "one two"))
    assert problem(journal, NAMED, replace(ASKED, adapter=BASE), base) == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": "[1b1b1b1b] south r1 " + NEW + " north-legal 1.0.0 g3: one two"}, "the answer is"),
        ({"text": "[1b1b1b1b] north r2 " + NEW + " north-legal 1.0.0 g3: one two"}, "the answer is"),
        ({"text": "[1b1b1b1b] north r1 " + NEW + " north-legal 1.0.0 g3: one three"}, "the answer is"),
        ({"text": "[1b1b1b1b] north r1 " + OLD + " north-legal 1.0.0 g3: one two"}, "the answer is"),
        ({"text": "[1b1b1b1b] north r1 " + NEW + " north-legal 1.0.0 g1: one two"}, "the answer is"),
        ({"text": "[1b1b1b1b] north r1"}, "the answer is"),
        ({"text": "x", "whole": False}, "the answer is"),
        ({"digest": OTHER}, "never had the digest"),
        ({"digest": OLD}, "generation 1"),
        ({"version": "2.0.0"}, "never had the digest"),
        ({"name": "south-legal", "digest": OTHER}, "north-legal was asked for"),
        ({"name": "", "version": "", "digest": ""}, "north-legal was asked for"),
    ],
)
def test_wrong_answers_are_noticed(journal: Journal, wrong: dict[str, object], said: str) -> None:
    assert said in problem(journal, NAMED, ASKED, replace(answer(journal, ASKED), **wrong))


def test_an_adapter_that_the_client_may_not_know_of_is_noticed(journal: Journal) -> None:
    asked = replace(ASKED, adapter="")
    theirs = replace(answer(journal, asked), name="south-legal", digest=OTHER)
    assert "may not know of south-legal" in problem(journal, NAMED, asked, theirs)


def test_around_a_replacement_both_are_right(journal: Journal) -> None:
    old = journal.contents["north-legal", "1.0.0"][OLD]
    during = replace(answer(journal, ASKED, OLD), start=old.over - 0.001)
    assert problem(journal, NAMED, ASKED, during) == ""
    new = journal.contents["north-legal", "1.0.0"][NEW]
    early = replace(answer(journal, ASKED), start=new.begun - 0.002, end=new.begun - 0.001)
    assert "generation 3" in problem(journal, NAMED, ASKED, early)


def test_what_is_hidden_may_be_seen_until_that_is_in_force(journal: Journal) -> None:
    journal.client("north-1", "north", "token", ["shared"])
    journal.read()
    hidden = journal.entry("north-1").begun
    right = answer(journal, ASKED)
    begun = replace(right, start=hidden + IN_FORCE_SECONDS / 2, end=hidden + 60)
    assert problem(journal, NAMED, ASKED, begun) == ""
    late = replace(begun, start=hidden + IN_FORCE_SECONDS + 0.001)
    assert "may not know" in problem(journal, NAMED, ASKED, late)


def test_a_real_answer_is_compared_with_the_one_given_alone(journal: Journal) -> None:
    alone = Alone({("medical", "one two"): "a", ("legal", "one two"): "b", (BASE, "one two"): "c"})
    right = answer(journal, ASKED, NEW, alone)
    assert problem(journal, alone, ASKED, right) == ""
    for text in "bc":
        assert problem(journal, alone, ASKED, replace(right, text=text))


def test_the_journal_is_read_line_by_line(journal: Journal) -> None:
    with journal.path.open("a") as file:
        file.write('{"at": 1, "kind": "serves", "name": "north-')
    journal.read()
    assert journal.entry("north-1").token == "token"
    other = Journal(journal.path)
    other.read()
    assert other.contents == journal.contents


def test_what_the_fake_engine_is_told_is_what_is_expected() -> None:
    job = Job("r1", list(b"one two"), SamplingParams(max_tokens=64), None, tenant="north")
    for joint in (False, True):
        said = bytes(telling(job, joint)).decode()
        assert NamedAnswers(joint).text("north", "r1", None, "one two") == f"[base] {said}"
