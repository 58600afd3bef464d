"""Probabilities of choices through the protocol: who wants them, whose calibration counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.base import Ability
from router.errors import FailedPrecondition
from router.server.pipeline import labels_wanted
from router.types import Constraint, LabelSettings, Request, Sampling, SamplingParams
from tests.server.helpers import ask, stream

CHOICES = {"choices": {"values": ["Neoplasms", "Injuries"]}}
OWN = Constraint("choices", choices=("a", "b"))
FITTED = LabelSettings(temperature=1.5)


@pytest.mark.parametrize(
    ("request_", "constraint", "adapter", "found"),
    [
        (Request("r", want_labels=True), OWN, FITTED, FITTED),
        (Request("r"), OWN, FITTED, None),
        (Request("r"), OWN, LabelSettings(True, 1.5), LabelSettings(True, 1.5)),
        (Request("r", want_labels=False), OWN, LabelSettings(True), None),
        (Request("r", want_labels=True), None, FITTED, None),
        (Request("r", want_labels=True), Constraint("regex", "a"), FITTED, None),
        (Request("r", want_labels=True, sampling=Sampling(constraint=OWN)), OWN, FITTED, LabelSettings()),
        (Request("r", want_labels=True, raw_prompt="x"), OWN, FITTED, LabelSettings()),
    ],
)
def test_who_has_them_and_how_calibrated(
    request_: Request, constraint: Constraint | None, adapter: LabelSettings, found: LabelSettings | None
) -> None:
    assert labels_wanted(request_, SamplingParams(constraint=constraint), adapter, Ability) == found


def test_an_engine_that_cannot_refuses() -> None:
    with pytest.raises(FailedPrecondition):
        labels_wanted(Request("r", want_labels=True), SamplingParams(constraint=OWN), FITTED, ())
    assert labels_wanted(Request("r"), SamplingParams(constraint=OWN), LabelSettings(True), ()) is None


@pytest.mark.slow
async def test_answers_and_streams_have_them(stubs: SimpleNamespace) -> None:
    asked: dict[str, Any] = {"sampling": CHOICES, "want_labels": True}
    reply = await stubs.inference.Generate(ask("hello", **asked))
    assert [label.text for label in reply.labels] == [reply.text, "Neoplasms"]
    assert sum(label.probability for label in reply.labels) == pytest.approx(1)
    assert not reply.labels_calibrated
    events = [event async for event in stubs.inference.StreamGenerate(stream("hello", **asked))]
    assert list(events[-1].finished.labels) == list(reply.labels)
    assert not (await stubs.inference.Generate(ask("hello", sampling=CHOICES))).labels
