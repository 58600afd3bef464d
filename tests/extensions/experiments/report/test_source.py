"""Checks of the pipeline, the sample ratio over time, and notes, by hand-made sums."""

from dataclasses import replace

import numpy as np
import pytest

from router.extensions.experiments.model import Kind, Unanswered
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.source import (
    changed_parts,
    ratio_evidence,
    ratio_of,
    total_moments,
)
from router.extensions.experiments.stats.checks import sample_ratio
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from tests.extensions.experiments.report.sums import (
    LONG_AFTER,
    SPEC,
    SUCCESS,
    SumsStore,
    both,
    bucket,
    running,
)

WEIGHTS = {"control": 0.5, "new": 0.5}


def test_evidence_is_the_one_of_the_statistics():
    counts = np.array([[10.0, 20.0], [100.0, 130.0]])
    expected = [sample_ratio([int(a), int(b)], [0.5, 0.5]).log_evidence for a, b in counts]
    assert ratio_evidence(counts, [0.5, 0.5]) == pytest.approx(expected)


def test_a_fault_that_was_made_up_for_later_is_still_found():
    early = [bucket("control", 500, 0), bucket("new", 300, 0)]
    later = [bucket("control", 300, 0, at=1), bucket("new", 500, 0, at=1)]
    assert ratio_of(early, WEIGHTS).alarm
    found = ratio_of([*early, *later], WEIGHTS)
    assert (found.counts, found.alarm) == ((800, 800), True)
    assert found.log_evidence < 0


def test_arms_of_one_bucket_are_counted_together():
    assert not ratio_of([bucket("control", 500, 0), bucket("new", 500, 0)], WEIGHTS).alarm
    assert ratio_of([], WEIGHTS).counts == (0, 0)


def test_the_peak_before_is_kept():
    assert ratio_of([], WEIGHTS, peak=7.5).peak == 7.5


A, B, BASE, ROUTER = "a" * 64, "b" * 64, "c" * 64, "d" * 64


def judged(buckets, spec=SPEC, **data):
    return report(SumsStore(buckets, running(spec), **data), "medical-v2", now=LONG_AFTER)


def check(found, name):
    return next(c for c in found.checks if c.name == name)


def test_a_changed_digest_is_named():
    mixed = changed_parts({"new": (f"{A}/{BASE}/{ROUTER}", f"{B}/{BASE}/{ROUTER}")})
    assert mixed == (f"adapter of new ({'a' * 12} -> {'b' * 12})",)
    assert changed_parts({"new": (f"{A}/{BASE}/{ROUTER}", f"{A}/{B}/{A}")}) == (
        f"base of new ({'c' * 12} -> {'b' * 12})",
        f"router of new ({'d' * 12} -> {'a' * 12})",
    )


def test_what_is_no_change_is_not_told():
    assert changed_parts({"new": (f"{A}/{BASE}/{ROUTER}", f"/{BASE}/{ROUTER}")}) == ()
    assert changed_parts({"old": (f"{A}/{BASE}/",), "new": (f"{B}/{BASE}/",)}) == ()


def test_a_changed_adapter_makes_the_verdict_invalid():
    found = judged(both(1000, 1150), digests={"new": (f"{A}/{BASE}/", f"{B}/{BASE}/")})
    assert found.verdict.rule == "mixed-digests"
    assert check(found, "mixed-digests").failed


def test_missing_outcomes_fail_unless_they_count_as_zero():
    buckets = [
        bucket("control", 2000, 900),
        bucket("new", 2000, 900, answered={"success": 1500, "error": 2000}),
    ]
    found = judged(buckets)
    assert found.verdict.rule == "missing-outcomes"
    assert "500 of 4,000 users with their whole window have no success and are left out" in found.notes
    spec = replace(SPEC, primary=replace(SUCCESS, missing=Unanswered.ZERO))
    found = judged(buckets, spec)
    assert not check(found, "missing-outcomes").failed
    assert "500 of 4,000 users with their whole window have no success and count as 0" in found.notes


def test_outcomes_that_count_nowhere_are_in_the_notes():
    notes = judged(both(500, 500), late=3).notes
    assert "not counted: 3 outcomes that happened or came too late" in notes


def test_crossed_units_fail_over_one_percent():
    assert not check(judged(both(500, 500), crossed=40), "crossed-units").failed
    found = judged(both(500, 500), crossed=41)
    assert found.verdict.rule == "crossed-units"
    assert check(found, "crossed-units").failed


def test_degraded_units_stay_and_are_told():
    found = judged([bucket("control", 500, 250), bucket("new", 500, 250, degraded=12)])
    assert found.numbers[1].degraded == 12
    assert any(note.startswith("new could not answer 12 users") for note in found.notes)


def test_a_later_phase_tells_that_it_stands_alone():
    made = running()
    phase = replace(made.phases[0], number=2, reason="weights changed")
    store = SumsStore(both(500, 500), replace(made, phases=(phase,)))
    found = report(store, "medical-v2", now=LONG_AFTER)
    assert "this is phase 2 (weights changed): nothing of an earlier phase counts" in found.notes


def test_sums_of_buckets_are_those_of_all_units():
    metric = ComparedMetric("m", Kind.RATIO)
    values = [([1.0, 2.0], [1.0, 1.0]), ([3.0], [2.0])]
    buckets = [bucket("new", 1, 0, at=i, moments={"m": Moments.of(*v)}) for i, v in enumerate(values)]
    assert total_moments(buckets, "new", metric) == Moments.of([1.0, 2.0, 3.0], [1.0, 1.0, 2.0])
    assert total_moments(buckets, "control", metric) == Moments.empty(2)
