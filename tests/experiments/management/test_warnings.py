"""What deserves a second look in a plan."""

from __future__ import annotations

import pytest

from router.experiments.kind import Kind
from router.experiments.management.warnings import plan_warnings
from router.experiments.model import MetricSpec, Mode
from tests.experiments.plans import plan


def rail(kind: Kind) -> MetricSpec:
    return MetricSpec("error", kind, higher_is_better=False, margin=0.05)


@pytest.mark.parametrize("kind", [Kind.RATIO, Kind.MEAN])
def test_a_guardrail_that_may_never_vary(kind: Kind) -> None:
    (found,) = plan_warnings(plan(guardrails=(rail(kind),)))
    assert "as a proportion" in found


def test_a_bandit_whose_units_move_before_their_window_closes() -> None:
    (found,) = plan_warnings(plan(mode=Mode.BANDIT, window=7200, epoch=3600))
    assert "between epochs" in found


def test_a_usual_plan_has_none() -> None:
    assert not list(plan_warnings(plan(guardrails=(rail(Kind.PROPORTION),))))
