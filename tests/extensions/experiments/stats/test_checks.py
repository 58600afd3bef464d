"""Guardrails, segments, pairs, and the checks of the pipeline."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.checks import (
    Guardrail,
    State,
    arm_term,
    guard,
    maturity,
    sample_ratio,
    total_term,
)
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.sequences import Line

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("counts", "weights"),
    [((0, 0), (0.5, 0.5)), ((5200, 4800), (0.5, 0.5)), ((90, 8, 30), (0.7, 0.1, 0.2))],
)
def test_it_is_dirichlet_multinomial_over_multinomial(counts, weights):
    total = sum(counts)
    mixed = stats.dirichlet_multinomial.logpmf(counts, 100 * np.array(weights), total)
    expected = mixed - stats.multinomial.logpmf(counts, total, weights)
    assert sample_ratio(counts, weights).log_evidence == pytest.approx(expected, abs=1e-6)


def first_alarms(share: float, runs: int, exposures: int) -> np.ndarray:
    ones = (np.random.default_rng(5).random((runs, exposures)) < share).cumsum(axis=1)
    arm, seen = arm_term(np.arange(exposures + 1.0), 0.5), np.arange(1, exposures + 1)
    reached = arm[ones] + arm[seen - ones] - total_term(seen) >= math.log(1000)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def test_a_fault_of_two_points_is_found_and_a_sound_split_is_not_accused():
    assert np.quantile(first_alarms(0.52, 60, 40_000), 0.95, method="inverted_cdf") < 40_000
    assert np.isinf(first_alarms(0.5, 150, 20_000)).all()


def test_an_alarm_stays():
    bad = sample_ratio((300, 100), (0.5, 0.5))
    assert bad.alarm
    assert bad.p < 0.001
    later = sample_ratio((20_100, 19_900), (0.5, 0.5), peak=bad.peak)
    assert later.alarm
    assert later.log_evidence < 0
    assert not sample_ratio((20_100, 19_900), (0.5, 0.5)).alarm


@pytest.mark.parametrize(
    ("counts", "weights", "text"),
    [
        ((1, 2), (0.5, 0.3, 0.2), "as many counts"),
        ((1, -2), (0.5, 0.5), "negative"),
        ((1, 2), (0.5, 0.6), "sum to 1"),
        ((1, 2), (1.0, 0.0), "above 0"),
        ((), (), "counts"),
    ],
)
def test_bad_counts_are_refused(counts, weights, text):
    with pytest.raises(InvalidRequest, match=text):
        sample_ratio(counts, weights)


def test_maturity_counts_whole_buckets():
    found = maturity([(3600.0, 10), (7200.0, 30), (10_800.0, 60)], now=9000.0, window=1800.0)
    assert (found.matured, found.exposed, found.share) == (40, 100, 0.4)
    assert maturity([], 0.0, 10.0).share == 0
    with pytest.raises(InvalidRequest, match="window"):
        maturity([], 0.0, -1.0)


ERRORS = ComparedMetric("errors", Kind.PROPORTION, higher_is_better=False)
QUALITY = ComparedMetric("quality", Kind.PROPORTION)
LATENCY = ComparedMetric("latency", Kind.MEAN, higher_is_better=False)
PLAN = SequencePlan(units=4000)


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


@pytest.mark.slow
def test_at_the_margin_a_stop_is_rare_however_often_one_looks():
    rng, stopped = np.random.default_rng(4), 0
    for _ in range(20):
        bad, worse = (rng.random(600) < p for p in (0.05, 0.07))
        stopped += any(
            guard(Guardrail(ERRORS, 0.02), share(bad[:n].sum(), n), share(worse[:n].sum(), n), PLAN).state
            is State.BEYOND
            for n in range(120, 600, 60)
        )
    assert stopped <= 1


@pytest.mark.parametrize(
    ("margin", "relative"), [(0.0, False), (-1.0, False), (float("nan"), False), (1.0, True)]
)
def test_margins_that_make_no_sense_are_refused(margin, relative):
    with pytest.raises(InvalidRequest, match="margin"):
        Guardrail(ERRORS, margin, relative)
