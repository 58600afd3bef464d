"""A bandit judged: evidence from labels of events, and what it makes of an arm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.model import Kind, MetricSpec, Mode
from router.experiments.report.build import report
from router.experiments.stats.moments import Moments
from router.experiments.stats.sequences import two_arms
from router.extensions.experiments_bandit.bandit import fewer_events, judged, more_events
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
        assert any(note.startswith("a bandit moves units") for note in found.notes)
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


EPOCHS, UNITS = 48, 100


def bandit(
    rng: np.random.Generator, factor: float, swing: float, realised: bool = False
) -> list[tuple[float, float, float]]:
    """Events by epoch of control and a treatment whose rate is `factor` times as large, under a daily cycle;
    the share follows the outcomes so far."""
    found, share = [], 0.5
    seen = np.ones((2, 2))  # events, units
    for epoch in range(EPOCHS):
        rate = 0.4 * (1 + swing * math.sin(epoch / 24 * 2 * math.pi))
        treated = int(rng.binomial(UNITS, share))
        events = (rng.binomial(UNITS - treated, rate), rng.binomial(treated, min(1.0, factor * rate)))
        found.append((*map(float, events), treated / UNITS if realised else share))
        seen += [[events[0], events[1]], [UNITS - treated, treated]]
        share = 0.9 if seen[0, 1] / seen[1, 1] < seen[0, 0] / seen[1, 0] else 0.1
    return found


def called(factor: float, margin: float, realised: bool = False, runs: int = 120) -> float:
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(runs):
        epochs = [e for e in bandit(rng, factor, 0.75, realised) if 0 < e[2] < 1]
        wrong += any(more_events(epochs[:n], margin) >= math.log(20) for n in range(1, len(epochs) + 1))
    return wrong / runs


@pytest.mark.slow
@pytest.mark.parametrize("realised", [False, True])
def test_equal_rates_that_drift_are_rarely_called_however_shares_move(realised):
    assert called(1.0, 1.0, realised) <= 0.05
    assert called(1.2, 1.2, realised) <= 0.05


def test_plain_counts_would_be_called_again_and_again():
    """The same runs by the exact sequence of two fixed rates."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(300):
        epochs = np.array(bandit(rng, 1.0, 0.75))
        rng_units = np.array([[UNITS * (1 - s), UNITS * s] for s in epochs[:, 2]]).cumsum(axis=0)
        events = epochs[:, :2].cumsum(axis=0)
        arms = [(events[:, i], np.maximum(rng_units[:, i] - events[:, i], 0)) for i in (0, 1)]
        wrong += bool((two_arms(arms[0], arms[1]) >= math.log(20)).any())
    assert wrong / 300 > 0.05


def test_harm_is_found():
    rng = np.random.default_rng(1)
    assert more_events(bandit(rng, 2.0, 0.5)) > math.log(20)
    assert more_events(bandit(rng, 2.0, 0.5), margin=2.0) < math.log(20)
    assert fewer_events(bandit(rng, 0.5, 0.5)) > math.log(20)


def test_one_label_by_hand():
    found = more_events([(0.0, 1.0, 0.5)])
    expected = np.mean([2 * r / (1 + r) for r in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)])
    assert found == pytest.approx(math.log(expected))
    assert more_events([]) == 0
    assert fewer_events([(3.0, 1.0, 0.2)]) == pytest.approx(more_events([(1.0, 3.0, 0.8)]))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="share"):
        more_events([(1.0, 1.0, 1.0)])
