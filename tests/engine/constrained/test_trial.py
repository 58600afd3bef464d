"""Grammars are tried in a process of their own: what kills it harms nobody."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from router.engine.constrained import trial
from router.engine.constrained.compiler import Grammars
from router.engine.constrained.source import VocabularySpec, grammar_text, spec_of
from router.engine.constrained.trial import Trials, tried
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
def test_hostile_ones_are_refused_and_say_why(name: str, real: Grammars) -> None:
    constraint, said = REFUSED[name]
    refused = real._make(constraint)
    assert isinstance(refused, tuple)
    assert refused[0].field.startswith(f"sampling.{constraint.kind}")
    assert re.search(said, refused[0].description), refused[0].description
    assert len(refused[0].description) < 500


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_only_looks_hostile_is_not_refused(name: str, real: Grammars) -> None:
    assert (await real.compile(ACCEPTED[name])).constraint == ACCEPTED[name]


def test_one_that_never_ends_is_ended(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ENDLESS_SECONDS", 0.05)
    monkeypatch.setattr(trial, "tried", lambda *_: max(iter(int, 1)))
    assert "does not come to an end" in trial._in_child(base().tokens, REGEX, "regex")


def test_how_fast_the_machine_is_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs a thousand times as fast, or stands, as a slow or a fast machine has it."""
    for second in (0.0, 1000.0):
        now = iter(range(10**9))
        for clock in ("monotonic", "perf_counter", "process_time", "thread_time", "time"):
            monkeypatch.setattr(f"time.{clock}", lambda now=now, second=second: next(now) * second)
        assert tried(base().tokens, REGEX, "regex") == "+"
        assert tried(base().tokens, BOMB, "regex").startswith("+forces more than")


def test_a_process_that_is_gone_is_started_again(trials: Trials) -> None:
    process = trials._started()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert trials.run(REGEX, "regex") == ""
    assert trials._started() is not process


def test_a_child_that_crashes_refuses_its_grammar_only(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "tried", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert trial._in_child(base().tokens, REGEX, "regex") == trial._TOO_LARGE
    monkeypatch.undo()
    assert trial._in_child(base().tokens, REGEX, "regex") == ""


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "tried", lambda *_: f"+{len(bytearray(2 * trial.MEMORY_BYTES))}")
    assert trial._in_child(base().tokens, REGEX, "regex") == trial._TOO_LARGE


def test_a_vocabulary_that_cannot_be_read_is_an_error_not_a_hang() -> None:
    broken = Trials(VocabularySpec("{}", 10, (1,)))
    with pytest.raises(EngineFailed):
        broken.run(REGEX, "regex")
    broken.close()
    with pytest.raises(EngineFailed, match="stopped"):
        broken.run(REGEX, "regex")


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("regex", "[ab]{3}"), "+"),
        (Constraint("regex", "a("), "+at 1"),
        (Constraint("grammar", 'start: "a" b\nb: /[^\\s\\S]/ b'), "+NoExtensionBias"),
        (Constraint("grammar", 'start: "a" b\nb: "x" b'), "+parser error: Too many items"),
        (Constraint("regex", "(a{1000}){1000}"), "+forces more than"),
    ],
)
def test_what_a_walk_finds(constraint: Constraint, said: str) -> None:
    assert tried(base().tokens, grammar_text(constraint), constraint.kind).startswith(said)
