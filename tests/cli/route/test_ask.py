import json

import pytest

from router.routing.in_force import NEWCOMER
from router.v1 import inference_pb2
from tests.client import scripted


def test_votes_are_shown_with_bars_threshold_and_reason(cli, remote):
    done = cli("route", "Which chapter?")
    assert done.code == 0
    header, words, examples, second, *_ = done.out.splitlines()
    assert header.split() == ["CLASSIFIER", "ADAPTER", "CONFIDENCE", "TIME", "EVIDENCE"]
    assert words.split()[:2] == ["words", "declined"]
    assert examples.split()[:4] == ["examples", "medical", "0.93", "#" * 22]
    assert examples.endswith("icd")
    assert second.split() == ["legal", "0.04", "#"]
    assert "threshold 0.50" in done.out
    assert done.out.endswith("medical@1.2.0  confidence 0.93  by examples  (classified)  in 0.4 ms\n")
    assert remote.inference.requests[0].routing.explain


def test_a_classifier_that_still_learns_is_no_fault(cli, remote, monkeypatch):
    decision = inference_pb2.Decision()
    decision.CopyFrom(scripted.DECISION)
    first, second = (decision.votes.add(classifier=name) for name in ("late", "slow"))
    first.error, second.error = "not-ready", "timeout"
    monkeypatch.setattr(scripted, "DECISION", decision)
    lines = cli("route", "hi").out.splitlines()
    assert next(line for line in lines if line.startswith("late")).split()[1:4] == ["not", "ready", "yet"]
    assert next(line for line in lines if line.startswith("slow")).split()[1:3] == ["lost:", "timeout"]


def test_json(cli, remote):
    votes = json.loads(cli("route", "--json", "hi").out)["votes"]
    assert [(v["classifier"], v["declined"]) for v in votes] == [("words", True), ("examples", False)]


def test_the_state_of_the_calibration_is_shown(cli, remote, monkeypatch):
    decision = inference_pb2.Decision()
    decision.CopyFrom(scripted.DECISION)
    decision.calibration = NEWCOMER
    monkeypatch.setattr(scripted, "DECISION", decision)
    assert f"threshold 0.50  calibration {NEWCOMER}\n" in cli("route", "hi").out


@pytest.mark.slow
def test_what_is_no_sub_command_is_a_prompt(cli, remote):
    for arguments in (
        ["evaluate this contract"],
        ["--timeout", "9", "calibrated", "scales"],
        ["PROMPT", "hi"],
    ):
        assert cli("route", *arguments).code == 0
    prompts = [r.input.text for r in remote.inference.requests]
    assert prompts == ["evaluate this contract", "calibrated scales", "hi"]
