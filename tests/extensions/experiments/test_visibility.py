"""Which experiments are there for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.extensions.experiments.model import ArmSpec, ExperimentPhase, Spec
from router.extensions.experiments.visibility import Visibility
from router.types import EVERYTHING, AdapterRef, Visible
from tests.extensions.experiments.made import experiment
from tests.extensions.experiments.plans import holdout_plan, plan

MEDICAL, TRIALS, NONE = Visible(("medical",)), Visible(("tri*",)), Visible()


@pytest.mark.parametrize(
    ("adapters", "experiments", "spec", "seen"),
    [
        (MEDICAL, TRIALS, plan(), True),
        (EVERYTHING, EVERYTHING, plan(), True),
        (NONE, TRIALS, plan(), False),
        (MEDICAL, NONE, plan(), False),
        (EVERYTHING, Visible(("other",)), plan(), False),
        (MEDICAL, TRIALS, plan(route="base", arms=(ArmSpec("a", 0.5), ArmSpec("b", 0.5))), True),
        (MEDICAL, TRIALS, plan(route="legal", arms=(ArmSpec("a", 0.5), ArmSpec("b", 0.5))), False),
        (MEDICAL, TRIALS, plan(arms=(*plan().arms, ArmSpec("c", 0.1, AdapterRef("legal", "1")))), False),
        (MEDICAL, EVERYTHING, holdout_plan(), False),
        (EVERYTHING, TRIALS, holdout_plan(), False),
        (EVERYTHING, EVERYTHING, holdout_plan(), True),
    ],
)
def test_by_name_and_by_adapters(adapters: Visible, experiments: Visible, spec: Spec, seen: bool) -> None:
    visibility = Visibility(adapters, experiments)
    assert visibility.sees_plan("trial", spec) == seen
    assert visibility.sees(replace(experiment("trial", spec), phases=())) == seen


def test_an_earlier_phase_counts() -> None:
    hidden = plan(route="legal", arms=(ArmSpec("a", 0.5), ArmSpec("b", 0.5)))
    phases = (ExperimentPhase(1, 0.0, "e", "v", hidden), ExperimentPhase(2, 1.0, "e", "v", plan()))
    found = replace(experiment("trial", plan()), phases=phases)
    assert not Visibility(MEDICAL, TRIALS).sees(found)
    assert Visibility(Visible(("medical", "legal")), TRIALS).sees(found)


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ({"fields": {"enrolment": {"before": 0.1, "after": 1}}}, True),
        ({"fields": {"route": {"before": "medical", "after": "base"}}}, True),
        ({"fields": {"route": {"before": "legal", "after": "medical"}}}, False),
        (
            {"fields": {"arms": {"before": [{"name": "a", "adapter": {"name": "medical"}}], "after": []}}},
            True,
        ),
        ({"fields": {"arms": {"before": [], "after": [{"name": "a", "adapter": {"name": "legal"}}]}}}, False),
        ({"fields": {"arms": {"before": [{"name": "a", "adapter": None}], "after": []}}}, True),
    ],
)
def test_an_audit_entry_names_no_hidden_adapter(detail: dict[str, object], shown: bool) -> None:
    assert Visibility(MEDICAL, TRIALS).detail(detail) == (detail if shown else {})
    assert Visibility(EVERYTHING, TRIALS).detail(detail) == detail
