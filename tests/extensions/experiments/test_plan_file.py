"""A plan that is written as a file is read back as the same plan."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import (
    Aggregate,
    Kind,
    MetricSpec,
    SegmentSpec,
    Unanswered,
    seconds,
    time_text,
)
from router.extensions.experiments.plan_file import plan_of, plan_toml, values_of
from tests.extensions.experiments.report.sums import SPEC

WHOLE = replace(
    SPEC,
    hypothesis='says "more"\n\x7f\té',
    primary=MetricSpec(
        "seconds", Kind.MEAN, False, Aggregate.MEAN, missing=Unanswered.ZERO, cap=60.0, least=0.5
    ),
    guardrails=(MetricSpec("error", Kind.PROPORTION, False, margin=0.1, relative=True, window=90.0),),
    secondary=(MetricSpec("clicks", Kind.RATIO, aggregate=Aggregate.SUM, per="outcomes"),),
    segments=(SegmentSpec("country", ("de", "fr")), SegmentSpec("plan", ("free",))),
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


@pytest.mark.parametrize(
    ("text", "expected"), [(5, 5.0), ("90s", 90.0), ("1.5 h", 5400.0), ("30min", 1800.0), ("1e-07s", 1e-07)]
)
def test_times_have_units(text, expected):
    assert seconds(text) == expected
    assert seconds(time_text(expected)) == expected


@pytest.mark.parametrize("wrong", ["1w", "h", "", [3], None])
def test_other_times_are_refused(wrong):
    with pytest.raises(InvalidRequest, match="window: must be a"):
        plan_of(values_of(SPEC) | {"window": wrong})


def test_what_the_server_measures_needs_neither_kind_nor_direction():
    made = plan_of(
        values_of(SPEC) | {"guardrails": [{"name": "total_time", "margin": 0.1}, {"name": "error"}]}
    )
    total, error = made.guardrails
    assert (total.kind, total.combined, total.higher_is_better) == (Kind.MEAN, Aggregate.MEAN, False)
    assert (error.kind, error.higher_is_better) == (Kind.PROPORTION, False)


def test_every_wrong_field_is_named_at_once():
    wrong = {"windw": 3, "alpha": "often", "arms": [{"name": "a b"}], "primary": {"name": "x", "kind": "odd"}}
    with pytest.raises(InvalidRequest) as caught:
        plan_of(wrong)
    told = {violation.field: violation.description for violation in caught.value.violations}
    assert told["windw"] == "unknown field; did you mean 'window'?"
    assert told["primary.kind"] == "must be 'proportion', 'mean' or 'ratio', got 'odd'"
    assert set(told) == {"windw", "alpha", "arms[0].name", "arms[0].weight", "primary.kind", "control"}
