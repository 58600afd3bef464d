"""Reports of bandits: what stops an arm, and what is not told."""

from __future__ import annotations

import math
from dataclasses import replace

from router.experiments.model import Kind, MetricSpec, Mode
from router.experiments.report.build import report
from router.experiments.stats.moments import Moments
from router.extensions.experiments_bandit.judging import judged
from tests.experiments.report.sums import LONG_AFTER, SPEC, SumsStore, both, bucket, running

JUDGES = {"bandit": judged}


def test_a_bandit_promotes_nothing_and_shows_no_interval():
    mean = MetricSpec("seconds_saved", Kind.MEAN)
    rows = Moments.of([float(i % 7) for i in range(2000)])
    buckets = [replace(b, moments={**b.moments, "seconds_saved": rows}) for b in both(1000, 1150)]
    buckets.append(bucket("new", 3000, 1725, at=1))
    for spec in (replace(SPEC, mode=Mode.BANDIT), replace(SPEC, mode=Mode.BANDIT, primary=mean)):
        found = report(SumsStore(buckets, running(spec)), "medical-v2", now=LONG_AFTER, judges=JUDGES)
        assert (found.verdict.decision, found.verdict.rule) == ("undecided", "bandit")
        primary = found.arms[0].primary
        assert primary is not None
        assert (primary.method, math.isinf(primary.high)) == ("labels", True)
        assert primary.anytime == (spec.primary is not mean)
        assert primary.waiting is not None
        assert any(note.startswith("bandit:") for note in found.notes)
    assert all(math.isinf(point.high) for point in found.points if point.arm == "new")


def test_a_bandit_may_move_units_between_its_epochs():
    store = SumsStore(both(1000, 1150), running(replace(SPEC, mode=Mode.BANDIT)), crossed=900)
    found = report(store, "medical-v2", now=LONG_AFTER, judges=JUDGES)
    assert found.verdict.decision == "undecided"
    (check,) = [check for check in found.checks if check.name == "crossed-units"]
    assert (check.failed, "900 so far" in check.text) == (False, True)
    split = report(SumsStore(both(1000, 1150), crossed=900), "medical-v2", now=LONG_AFTER, judges=JUDGES)
    assert split.verdict.rule == "crossed-units"


def test_a_bandit_stops_an_arm_only_on_what_holds_under_drift():
    buckets = [bucket("control", 500, 250, 5), bucket("new", 500, 250, 100)]
    rail = replace(SPEC.guardrails[0], margin=0.5, relative=True)
    for rails, rule in (((rail,), "guardrail"), (SPEC.guardrails, "bandit")):
        store = SumsStore(buckets, running(replace(SPEC, mode=Mode.BANDIT, guardrails=rails)))
        found = report(store, "medical-v2", now=LONG_AFTER, judges=JUDGES)
        assert found.verdict.rule == rule
        (guarded,) = found.arms[0].guardrails
        assert (guarded.state, guarded.anytime) == (
            ("beyond", True) if rule == "guardrail" else ("open", False)
        )
    worse = report(
        SumsStore([bucket("control", 500, 400, 5), bucket("new", 500, 300, 5)], running(spec_of_bandit())),
        "medical-v2",
        now=LONG_AFTER,
        judges=JUDGES,
    )
    assert (worse.verdict.decision, worse.verdict.rule) == ("stop for harm", "primary-worse")


def test_weights_that_move_do_not_look_like_harm():
    """A better arm in bad hours, a worse one in good hours: by plain means it would look far worse."""
    buckets = []
    for hour in range(40):
        rate, many = (0.8, 30) if hour % 2 else (0.2, 170)
        for arm, units in (("control", 200 - many), ("new", many)):
            buckets.append(bucket(arm, units, round(rate * units), round(0.02 * units), at=hour))
    found = report(SumsStore(buckets, running(spec_of_bandit())), "medical-v2", now=LONG_AFTER, judges=JUDGES)
    assert found.verdict.rule == "bandit"
    assert found.arms[0].primary.effect < -0.2
    assert found.arms[0].adjusted_p > 0.5


def spec_of_bandit():
    return replace(SPEC, mode=Mode.BANDIT)
