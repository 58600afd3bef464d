"""Templates make a constraint of a prompt; where they cannot, an adapter's own leaves the answer free."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.engine.base import Job
from router.engine.constrained.templates import ConstraintTemplates, NoSource, source_text
from router.engine.fake import FakeEngine
from router.errors import FailedPrecondition, InvalidRequest
from router.types import Constraint, SamplingParams, Turn

PROMPT = "Passage: It rained.\nQuestion: When?"
QUOTE = Constraint("from_prompt", "quote")


def raising(prompt: str) -> Constraint:
    raise ValueError(prompt)


def missing(prompt: str) -> Constraint:
    raise NoSource("it has no such thing")


MADE: dict[str, Any] = {
    "one": lambda prompt: Constraint("choices", choices=(prompt,)),
    "raising": raising,
    "missing": missing,
    "none": lambda prompt: prompt,
    "itself": lambda prompt: QUOTE,
    "wrong": lambda prompt: Constraint("regex", "a("),
    "long": lambda prompt: Constraint("quote", "x" * 70_000),
}


def prepared(
    constraint: Constraint | None, prompt: str = PROMPT, own: bool = False, unconstrained: str = ""
) -> Job:
    job = Job("r", [1], SamplingParams(constraint=constraint), tenant="t", own_constraint=own)
    engine = FakeEngine(unconstrained=unconstrained)
    engine.start()
    return asyncio.run(ConstraintTemplates(lambda: MADE).prepared(engine, job, prompt))


@pytest.mark.parametrize("own", [False, True])
def test_a_template_makes_the_constraint_of_a_request(own: bool) -> None:
    job = prepared(QUOTE, own=own)
    assert job.params.constraint == Constraint("quote", "It rained.")
    assert job.grammar is not None
    assert not job.own_constraint  # it is of this prompt: kept for the tenant alone
    assert prepared(Constraint("from_prompt", "one"), "x" * 900).params.constraint == Constraint(
        "choices", choices=("x" * 900,)
    )


def test_other_constraints_are_as_they_were() -> None:
    assert prepared(None).grammar is None
    job = prepared(Constraint("regex", "a"), own=True)
    assert (job.params.constraint, job.own_constraint) == (Constraint("regex", "a"), True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "it has no such thing"),
        ("quote", "no line begins with one of Passage:, Context:, Text:, Article:, Document:"),
        ("quot", "there is no template 'quot', but itself, long, missing, none, one, quote, raising, wrong"),
        ("raising", "the template failed"),
        ("none", "the template made no constraint"),
        ("itself", "the template made no constraint"),
        ("wrong", "unclosed group"),
        ("long", "must have at most 65536 bytes"),
    ],
)
def test_what_cannot_be_made_is_an_error_of_a_request_only(name: str, said: str) -> None:
    asked = Constraint("from_prompt", name)
    with pytest.raises(InvalidRequest) as caught:
        prepared(asked, "no label")
    violation = caught.value.violations[0]
    assert (violation.field, said in violation.description) == ("sampling.from_prompt", True), violation
    job = prepared(asked, "no label", own=True)
    assert (job.params.constraint, job.grammar) == (None, None)


def test_an_engine_that_cannot_answers_freely_for_an_adapter() -> None:
    with pytest.raises(FailedPrecondition, match="no bytes"):
        prepared(QUOTE, unconstrained="no bytes")
    assert prepared(QUOTE, own=True, unconstrained="no bytes").params.constraint is None


def test_a_name_is_checked() -> None:
    templates = ConstraintTemplates()
    for fine in (None, QUOTE, Constraint("regex", "a")):
        templates.check(fine)
    with pytest.raises(InvalidRequest, match="no template 'sql', but quote"):
        templates.check(Constraint("from_prompt", "sql"))


def test_what_templates_read() -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    assert source_text(turns, None) == "c"
    assert source_text((), "raw") == "raw"
    assert source_text((Turn("system", "s"),), None) == ""
