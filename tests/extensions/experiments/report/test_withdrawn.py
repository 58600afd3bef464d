"""One arm of three is withdrawn halfway: the others are judged as if it had not been."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.extensions.experiments.model import ArmSpec
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.source import ratio_of
from tests.extensions.experiments.report.sums import SPEC, STARTED, SumsStore, bucket, running

HOURS, HALF = 12, STARTED + 6.5 * 3600
THREE = replace(
    SPEC, arms=(*(replace(arm, weight=0.4) for arm in SPEC.arms), ArmSpec("base", 0.2)), planned_units=10_000
)
WITHDRAWN = replace(
    THREE, arms=tuple(replace(arm, withdrawn=HALF if arm.name == "base" else None) for arm in THREE.arms)
)
NOW = STARTED + 40 * 3600.0


def hours(*, withdrawn: bool):
    """400, 400 and 200 units an hour. Of base, half an hour's beyond its withdrawal."""
    for hour in range(HOURS):
        yield bucket("control", 400, 200, 8, at=hour)
        yield bucket("new", 400, 235, 8, at=hour)
        if not withdrawn or hour <= 6:
            units = 100 if withdrawn and hour == 6 else 200
            yield bucket("base", units, units // 2, 4, at=hour)


def test_the_others_have_the_verdict_that_they_would_have():
    whole = report(SumsStore(list(hours(withdrawn=False)), running(THREE)), "medical-v2", now=NOW)
    made = report(SumsStore(list(hours(withdrawn=True)), running(WITHDRAWN)), "medical-v2", now=NOW)
    new, base = made.arms
    assert new == whole.arms[0]
    assert new.verdict.decision == "promote"
    assert made.verdict == new.verdict
    assert made.arm == "new"
    assert (base.verdict.decision, base.verdict.rule) == ("undecided", "withdrawn")
    assert base.verdict.text.startswith(
        "since 1970-01-12 20:16 UTC it has no units; by its units until then: success: "
    )


def test_a_withdrawn_arm_is_compared_with_the_units_of_its_time():
    drifted = [
        replace(b, moments=bucket("control", 400, 40, 8).moments) if b.arm == "control" and at >= 7 else b
        for b in hours(withdrawn=True)
        for at in [round((b.start - STARTED) / 3600)]
    ]
    made = report(SumsStore(drifted, running(WITHDRAWN)), "medical-v2", now=NOW)
    base = made.arms[1].primary
    assert base is not None
    assert base.units == (2800, 1300)
    assert base.values == pytest.approx((0.5, 0.5))
    assert any(text.startswith("base was withdrawn at 1970-01-12 20:16 UTC") for text in made.notes)


def test_the_ratio_is_tested_among_the_arms_that_had_units():
    weights, since = {arm.name: arm.weight for arm in THREE.arms}, {"base": HALF}
    buckets = list(hours(withdrawn=True))
    assert ratio_of(buckets, weights).alarm
    found = ratio_of(buckets, weights, withdrawn=since)
    assert found.peak < 1
    assert found.counts == (4800, 4800, 1300)
    assert found.expected == pytest.approx((4800, 4800, 1300))
    before = ratio_of([b for b in buckets if b.start + 3600 <= HALF], weights)
    assert ratio_of([], weights, withdrawn=since).counts == (0, 0, 0)
    assert found.log_evidence < before.log_evidence  # what comes later adds to it
    skewed = [replace(b, exposed=330) if b.arm == "new" and b.start > HALF else b for b in buckets]
    assert ratio_of(skewed, weights, withdrawn=since).alarm
    made = report(SumsStore(buckets, running(WITHDRAWN)), "medical-v2", now=NOW)
    assert not any(check.failed for check in made.checks)
    assert [round(one.expected) for one in made.numbers] == [4800, 4800, 1300]
