"""Good plans for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from router.extensions.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, Mode, Spec, Unanswered
from router.types import AdapterRef

SOLVED = MetricSpec("solved", Kind.PROPORTION, aggregate=Aggregate.MAX, missing=Unanswered.EXCLUDED)


def said(metric: MetricSpec) -> MetricSpec:
    """As a server keeps one of a client's outcomes."""
    return replace(metric, aggregate=metric.combined, missing=metric.missing or Unanswered.ZERO)


def plan(**fields: Any) -> Spec:
    """Two versions of medical, an even split."""
    spec = Spec(
        hypothesis="the new version solves more",
        route="medical",
        arms=(
            ArmSpec("old", 0.5, AdapterRef("medical", "1.0.0")),
            ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0")),
        ),
        control="old",
        primary=SOLVED,
    )
    return replace(spec, **fields)


def holdout_plan(**fields: Any) -> Spec:
    """Everybody in experiments against the server's holdout."""
    arms = (ArmSpec("held", 0.1), ArmSpec("all", 0.9))
    return plan(route="", mode=Mode.HOLDOUT, arms=arms, control="held", **fields)
