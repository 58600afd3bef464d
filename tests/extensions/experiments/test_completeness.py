"""What a missing outcome counts as, where a plan does not say it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.extensions.experiments.model import Aggregate, Kind, MetricSpec, Unanswered
from router.extensions.experiments.plans import chosen
from tests.extensions.experiments.plans import plan

SCORE = MetricSpec("score", Kind.MEAN, aggregate=Aggregate.SUM)


@pytest.mark.parametrize(
    ("name", "kind", "missing"),
    [
        ("thumbs_up", Kind.PROPORTION, Unanswered.ZERO),
        ("clicks", Kind.RATIO, Unanswered.ZERO),
        ("revenue", Kind.MEAN, Unanswered.ZERO),
        ("error", Kind.PROPORTION, Unanswered.EXCLUDED),
        ("total_time", Kind.MEAN, Unanswered.EXCLUDED),
    ],
)
def test_a_new_plan_gets_what_suits_the_metric(name, kind, missing):
    metric = MetricSpec(name, kind)
    made = chosen(plan(primary=metric, secondary=(metric,)))
    assert made.primary.missing is made.secondary[0].missing is missing


def test_an_edit_keeps_what_a_metric_had():
    before = plan(primary=replace(SCORE, missing=Unanswered.EXCLUDED))
    assert chosen(plan(primary=SCORE), before).primary.missing is Unanswered.EXCLUDED
