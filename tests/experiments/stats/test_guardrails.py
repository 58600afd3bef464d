"""Guardrails: beyond the margin, within it, or open."""

from __future__ import annotations

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats import Guardrail, Kind, Line, Metric, Moments, Plan, State, guard

ERRORS = Metric("errors", Kind.PROPORTION, higher_is_better=False)
QUALITY = Metric("quality", Kind.PROPORTION)
LATENCY = Metric("latency", Kind.MEAN, higher_is_better=False)
PLAN = Plan(units=4000)


def share(ones: int, units: int) -> Moments:
    return Moments(units, (float(ones),), (float(ones),))


@pytest.mark.parametrize(
    ("rail", "control", "treatment", "state"),
    [
        (Guardrail(ERRORS, 0.02), share(100, 2000), share(240, 2000), State.BEYOND),
        (Guardrail(ERRORS, 0.02), share(100, 2000), share(100, 2000), State.WITHIN),
        (Guardrail(ERRORS, 0.02), share(100, 2000), share(135, 2000), State.OPEN),
        (Guardrail(ERRORS, 0.02), share(0, 15), share(15, 15), State.BEYOND),
        (Guardrail(ERRORS, 0.02), share(0, 15), share(1, 15), State.OPEN),
        (Guardrail(ERRORS, 0.02), share(15, 15), share(0, 15), State.WITHIN),
        (Guardrail(QUALITY, 0.05), share(1400, 2000), share(1200, 2000), State.BEYOND),
        (Guardrail(QUALITY, 0.05), share(1400, 2000), share(1400, 2000), State.WITHIN),
        (Guardrail(QUALITY, 0.1, relative=True), share(1400, 2000), share(1140, 2000), State.BEYOND),
        (Guardrail(QUALITY, 0.1, relative=True), share(1400, 2000), share(1380, 2000), State.WITHIN),
    ],
)
def test_what_is_shown(rail, control, treatment, state):
    found = guard(rail, control, treatment, PLAN)
    assert found.state is state
    assert (found.p_beyond <= 0.05) == (state is State.BEYOND)
    assert (found.p_within <= 0.05) == (state is State.WITHIN)


def test_a_relative_margin_of_a_mean():
    rng = np.random.default_rng(0)
    control, slower = (Moments.of(mean * rng.lognormal(0, 0.4, 2000)) for mean in (200.0, 230.0))
    assert guard(Guardrail(LATENCY, 0.05, relative=True), control, slower, PLAN).state is State.BEYOND
    assert guard(Guardrail(LATENCY, 0.30, relative=True), control, slower, PLAN).state is State.WITHIN
    assert guard(Guardrail(LATENCY, 0.15, relative=True), control, slower, PLAN).state is State.OPEN


def test_the_line_lies_on_the_worse_side():
    assert Guardrail(ERRORS, 0.02).line == Line(offset=0.02)
    assert Guardrail(QUALITY, 0.02).line == Line(offset=-0.02)
    assert Guardrail(ERRORS, 0.1, relative=True).line == Line(scale=1.1)
    assert Guardrail(QUALITY, 0.1, relative=True).line == Line(scale=0.9)


def test_at_the_margin_a_stop_is_rare_however_often_one_looks():
    rng, stopped = np.random.default_rng(4), 0
    for _ in range(40):
        bad, worse = (rng.random(600) < p for p in (0.05, 0.07))
        stopped += any(
            guard(Guardrail(ERRORS, 0.02), share(bad[:n].sum(), n), share(worse[:n].sum(), n), PLAN).state
            is State.BEYOND
            for n in range(120, 600, 60)
        )
    assert stopped <= 2


@pytest.mark.parametrize(
    ("margin", "relative"), [(0.0, False), (-1.0, False), (float("nan"), False), (1.0, True)]
)
def test_margins_that_make_no_sense_are_refused(margin, relative):
    with pytest.raises(InvalidRequest, match="margin"):
        Guardrail(ERRORS, margin, relative)
