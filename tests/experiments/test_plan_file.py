"""A plan that is written as a file is read back as the same plan."""

from __future__ import annotations

import tomllib
from dataclasses import replace

from router.experiments.cli.create import plan_of
from router.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec
from router.experiments.plan_file import plan_toml
from tests.experiments.report.sums import SPEC

WHOLE = replace(
    SPEC,
    hypothesis='says "more"\n\x7f\té',
    primary=MetricSpec("seconds", Kind.MEAN, False, Aggregate.MEAN, missing="zero", cap=60.0, least=0.5),
    guardrails=(MetricSpec("error", Kind.PROPORTION, False, margin=0.1, relative=True, window=90.0),),
    secondary=(MetricSpec("clicks", Kind.RATIO, aggregate=Aggregate.SUM, per="outcomes"),),
    segments=(SegmentSpec("country", ("de", "fr")), SegmentSpec("plan")),
    slot=(0.25, 0.5),
    window=129_600.0,
    grace=90.0,
    enrolment=0.2,
)


def read_back(spec):
    return plan_of(tomllib.loads(plan_toml(spec)))


def test_a_plan_is_read_back_as_it_was():
    assert read_back(WHOLE) == WHOLE


def test_what_is_the_default_is_left_out():
    text = plan_toml(WHOLE)
    assert 'window = "36h"' in text
    assert "alpha" not in text
    assert "per" not in plan_toml(SPEC)
