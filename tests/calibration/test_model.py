"""The policy of task and domain, case by case, and what a calibration notices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import Axes, Axis, AxisPreference, axes_of, axis_of, binding_of, differences
from router.types import AdapterProfile

ADAPTERS = (
    AdapterProfile("medical", "1", domain="medical"),
    AdapterProfile("legal", "1", domain="legal", task="question-answering"),
    AdapterProfile("qa", "1", task="question-answering"),
    AdapterProfile("summarization", "1", task="summarization"),
    AdapterProfile("code", "1", task="code-generation"),
    AdapterProfile("briefs", "1", domain="legal", task="summarization"),
    AdapterProfile("anything", "1"),
)
AXES = axes_of(ADAPTERS)
OFF = Axes(task_first=False, domain_first=False)


def test_the_axis_comes_from_the_manifest() -> None:
    assert AXES == {
        "medical": Axis.DOMAIN,
        "legal": Axis.DOMAIN,
        "qa": Axis.PLAIN,
        "summarization": Axis.TASK,
        "code": Axis.TASK,
        "briefs": Axis.BOTH,
        "anything": Axis.BOTH,
    }
    assert axis_of(AdapterProfile("talk", "1", task="chat")) is Axis.PLAIN


@pytest.mark.parametrize(
    ("case", "confidences", "axes", "winner", "over"),
    [
        ("medical, to summarize", {"medical": 0.5, "code": 0.45}, Axes(), "code", "medical"),
        ("hardly an instruction", {"medical": 0.6, "summarization": 0.3}, Axes(), "medical", ""),
        ("a medical text, policy off", {"medical": 0.5, "summarization": 0.45}, OFF, "medical", ""),
        ("a question on tax law", {"qa": 0.5, "legal": 0.42}, Axes(), "legal", "qa"),
        ("a trivia question", {"qa": 0.7, "legal": 0.2}, Axes(), "qa", ""),
        ("domain yields only if told to", {"qa": 0.5, "legal": 0.42}, Axes(domain_first=False), "qa", ""),
        ("task before domain over plain", {"qa": 0.4, "legal": 0.38, "code": 0.35}, Axes(), "code", "qa"),
        ("the task leads already", {"summarization": 0.5, "medical": 0.49}, Axes(), "summarization", ""),
        ("stronger task", {"medical": 0.4, "code": 0.36, "summarization": 0.33}, Axes(), "code", "medical"),
        ("both axes yield to none", {"briefs": 0.5, "summarization": 0.49}, Axes(), "briefs", ""),
        ("nothing is near at all", {"medical": 0.05, "summarization": 0.05}, Axes(), "summarization", ""),
        ("near as said", {"medical": 0.6, "code": 0.3}, Axes(near=0.5), "code", "medical"),
        ("who is unknown is on no axis", {"stranger": 0.5, "summarization": 0.49}, Axes(), "stranger", ""),
    ],
)  # fmt: skip
def test_cases(case: str, confidences: dict[str, float], axes: Axes, winner: str, over: str) -> None:
    assert axes.prefer(confidences, AXES) == AxisPreference(winner, over), case


def test_nobody() -> None:
    assert Axes().prefer({}, AXES) is None


@given(st.dictionaries(st.sampled_from([a.name for a in ADAPTERS]), st.floats(0, 1), min_size=1))
def test_the_winner_is_near_the_leader(confidences: dict[str, float]) -> None:
    preference = Axes().prefer(confidences, AXES)
    assert preference is not None
    most = max(confidences.values())
    assert confidences[preference.winner] >= 0.8 * most
    if preference.over:
        assert confidences[preference.over] == most
        assert AXES[preference.over] in (Axis.DOMAIN, Axis.PLAIN)
        assert AXES[preference.winner] in (Axis.TASK, Axis.DOMAIN)


MEDICAL = AdapterProfile("medical", "1", domain="medical", examples=("What is flu?",), keywords=("flu",))
LEGAL = AdapterProfile("legal", "1", domain="legal")
PRINTS = {"keywords": "keywords/1", "linear": "linear/1"}
FITTED = binding_of([MEDICAL, LEGAL], PRINTS, "smol")


def test_the_same_set_has_no_differences_in_any_order() -> None:
    assert differences(FITTED, binding_of([LEGAL, MEDICAL], PRINTS, "smol")) == ()


def test_a_new_version_with_the_same_routing_text_routes_alike() -> None:
    assert differences(FITTED, binding_of([replace(MEDICAL, version="2"), LEGAL], PRINTS, "smol")) == ()


@pytest.mark.parametrize(
    ("profiles", "prints", "base", "said"),
    [
        ([MEDICAL], PRINTS, "smol", "adapter legal is gone"),
        ([MEDICAL, LEGAL, AdapterProfile("cooking", "1")], PRINTS, "smol", "adapter cooking is new"),
        ([replace(MEDICAL, examples=("What?",)), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([replace(MEDICAL, keywords=()), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([replace(MEDICAL, task="triage"), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([MEDICAL, LEGAL], {**PRINTS, "linear": "linear/2"}, "smol", "classifier linear changed"),
        ([MEDICAL, LEGAL], {**PRINTS, "shout": "shout/0"}, "smol", "classifier shout is new"),
        ([MEDICAL, LEGAL], {"keywords": "keywords/1"}, "smol", "classifier linear is gone"),
        ([MEDICAL, LEGAL], dict(reversed(PRINTS.items())), "smol", "classifiers are asked in another order"),
        ([MEDICAL, LEGAL], PRINTS, "other", "the base is other, not smol"),
    ],
)
def test_differences_are_named(
    profiles: list[AdapterProfile], prints: dict[str, str], base: str, said: str
) -> None:
    assert differences(FITTED, binding_of(profiles, prints, base)) == (said,)
