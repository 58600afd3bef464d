"""Grammars are tried in a process of their own: its time is bounded, and what kills it harms nobody."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from router.engine.constrained import trial
from router.engine.constrained.compiler import Grammars
from router.engine.constrained.source import VocabularySpec, grammar_text, spec_of
from router.engine.constrained.trial import SECONDS, Trials, tried
from router.errors import EngineFailed
from router.types import Constraint
from tests.engine.constrained.driving import base
from tests.engine.constrained.hostile import ACCEPTED, REFUSED

pytestmark = pytest.mark.slow

REGEX = grammar_text(Constraint("regex", "[a-c]{2}"))
BOMB = grammar_text(Constraint("regex", "(a{1000}){1000}"))


@pytest.fixture(scope="module")
def real() -> Iterator[Grammars]:
    """Of the default base's vocabulary, read without the base."""
    from transformers import AutoTokenizer

    from router.models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    made = Grammars(lambda: spec_of(tokenizer, 49152, [0, 2]))
    yield made
    made.close()


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    made = Trials(base().spec)
    yield made
    made.close()


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_ones_are_refused_in_time_and_say_why(name: str, real: Grammars) -> None:
    real._make(Constraint("regex", "warm"))
    constraint, said = REFUSED[name]
    here = time.thread_time()  # beside it, a trial has its own bound: see below
    refused = real._make(constraint)
    assert time.thread_time() - here < SECONDS
    assert isinstance(refused, tuple)
    assert refused[0].field.startswith(f"sampling.{constraint.kind}")
    assert re.search(said, refused[0].description), refused[0].description
    assert len(refused[0].description) < 500


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_only_looks_hostile_is_not_refused(name: str, real: Grammars) -> None:
    assert (await real.compile(ACCEPTED[name])).constraint == ACCEPTED[name]


def test_the_time_of_a_trial_is_bounded(trials: Trials) -> None:
    assert trials.run(REGEX) == ""
    process = trials._started()
    before = _children_seconds(process.pid)
    assert "too complex" in trials.run(BOMB)
    assert 0.5 * SECONDS < _children_seconds(process.pid) - before < 1.5 * SECONDS
    assert trials.run(REGEX) == ""
    assert trials._started() is process, "one process for all of them"


def _children_seconds(pid: int) -> float:
    """Processor time of the children of a process that have ended."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def test_a_process_that_is_gone_is_started_again(trials: Trials) -> None:
    process = trials._started()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert trials.run(REGEX) == ""
    assert trials._started() is not process


def test_a_child_that_crashes_refuses_its_grammar_only(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "tried", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert trial._in_child(base().tokens, REGEX) == trial._TOO_LARGE
    monkeypatch.undo()
    assert trial._in_child(base().tokens, REGEX) == ""


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "tried", lambda *_: f"+{len(bytearray(2 * trial.MEMORY_BYTES))}")
    assert trial._in_child(base().tokens, REGEX) == trial._TOO_LARGE


def test_a_vocabulary_that_cannot_be_read_is_an_error_not_a_hang() -> None:
    broken = Trials(VocabularySpec("{}", 10, (1,)))
    with pytest.raises(EngineFailed):
        broken.run(REGEX)
    broken.close()
    with pytest.raises(EngineFailed, match="stopped"):
        broken.run(REGEX)


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("regex", "[ab]{3}"), "+"),
        (Constraint("regex", "a("), "+at 1"),
        (Constraint("grammar", 'start: "a" b\nb: /[^\\s\\S]/ b'), "+NoExtensionBias"),
        (Constraint("grammar", 'start: "a" b\nb: "x" b'), "+forces more than"),
    ],
)
def test_what_a_walk_finds(constraint: Constraint, said: str) -> None:
    assert tried(base().tokens, grammar_text(constraint)).startswith(said)
