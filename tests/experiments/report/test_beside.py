"""What stands beside a verdict: secondary metrics, segments, without CUPED, forecasts, holdouts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router.experiments.model import Aggregate, Kind, MetricSpec, Mode, SegmentSpec
from router.experiments.report.build import report
from router.experiments.stats.moments import Moments
from tests.experiments.report.sums import DAY, LONG_AFTER, SPEC, STARTED, SumsStore, both, bucket, running

pytestmark = pytest.mark.slow

LANGUAGE = SegmentSpec("language")
TOKENS = MetricSpec("tokens", Kind.MEAN, cap=400.0)


def read(buckets, spec=SPEC, now=LONG_AFTER, **fields):
    return report(SumsStore(buckets, running(spec, **fields)), "medical-v2", now=now)


def with_tokens(shift: float = 0.0):
    rng = np.random.default_rng(0)
    return [
        replace(
            b,
            moments={
                **b.moments,
                "tokens": Moments.of(rng.normal(100 + shift * (b.arm == "new"), 20, b.exposed).clip(0, 400)),
                "clicks": Moments(b.exposed, (b.exposed * 0.1,), (b.exposed * 0.1,)),
            },
        )
        for b in both(1000, 1010)
    ]


def test_secondary_metrics_are_told_with_wider_intervals_and_decide_nothing():
    alone, two = ((TOKENS,), (TOKENS, MetricSpec("clicks", Kind.PROPORTION)))
    found = [read(with_tokens(30), replace(SPEC, secondary=secondary)) for secondary in (alone, two)]
    for one in found:
        assert (one.verdict.decision, one.verdict.rule) == ("undecided", "primary-open")
        tokens = one.arms[0].secondary[0]
        assert (tokens.metric, tokens.cap, tokens.anytime) == ("tokens", 400.0, True)
        assert tokens.low < 30 < tokens.high
    widths = [one.arms[0].secondary[0].high - one.arms[0].secondary[0].low for one in found]
    assert widths[0] < widths[1]
    assert [m.alpha for m in found[1].arms[0].secondary] == [0.025, 0.025]
    assert read(both(1000, 1010)).arms[0].secondary == ()


def by_language(effects: dict[str, float]):
    """Control at one half, the arm higher by each language's effect; 1,000 units of each in both arms."""
    made = []
    for arm in ("control", "new"):
        sums = {v: round(1000 * (0.5 + (e if arm == "new" else 0))) for v, e in effects.items()}
        units = 1000 * len(effects)
        one = bucket(arm, units, sum(sums.values()), round(0.02 * units))
        values = {("language", v): Moments(1000, (float(s),), (float(s),)) for v, s in sums.items()}
        made.append(replace(one, segments=values))
    return made


def test_segments_that_differ_are_told_so():
    spec = replace(SPEC, segments=(LANGUAGE,))
    (found,) = read(by_language({"en": 0.2, "fr": -0.2, "(none)": 0.0}), spec).arms[0].segments
    assert found.differ
    assert found.p < 0.01
    assert found.effects["en"].low > 0 > found.effects["fr"].high
    assert found.effects["en"].alpha == pytest.approx(0.05 / 3)
    assert found.text.startswith("the effect differs between values of language")


def test_no_segment_is_significant_by_fishing():
    spec = replace(SPEC, segments=(LANGUAGE,))
    (found,) = read(by_language({"en": 0.08, "fr": 0.02, "de": 0.03}), spec).arms[0].segments
    assert not found.differ
    assert "the effect of everybody stands for each of them" in found.text


def test_segments_with_nothing_yet():
    spec = replace(SPEC, segments=(LANGUAGE, SegmentSpec("plan")))
    first, second = read(by_language({"en": 0.1}), spec).arms[0].segments
    assert first.text == "all units have one value of language"
    assert (second.effects, second.differ) == ({}, False)
    assert "no value of plan has two mature units" in second.text


def test_with_and_without_the_covariate():
    rng = np.random.default_rng(3)
    score = MetricSpec("score", Kind.MEAN, covariate=True)
    made = []
    for b in both(1000, 1000):
        past = rng.normal(0, 3, b.exposed)
        value = past + rng.normal(0.2 * (b.arm == "new"), 1, b.exposed)
        made.append(replace(b, moments={**b.moments, "score": Moments.of(value, past)}))
    arm = read(made, replace(SPEC, primary=score)).arms[0]
    assert arm.primary is not None
    assert arm.unadjusted is not None
    assert arm.unadjusted.high - arm.unadjusted.low > 2.5 * (arm.primary.high - arm.primary.low)
    assert read(both(1000, 1000)).arms[0].unadjusted is None


def test_a_forecast_follows_the_effect_and_the_pace():
    hours = 48
    found = read(both(1000, 1040, hours=hours), now=STARTED + 2 * DAY + 1)
    forecast = found.forecast
    assert forecast is not None
    assert forecast.units_per_day == pytest.approx(2000, rel=0.02)
    assert forecast.units > 4000
    assert forecast.days == pytest.approx((forecast.units - 4000) / 2000 + SPEC.window / DAY, rel=0.02)
    assert 0.02 < forecast.smallest_effect < 0.2
    assert forecast.text.startswith("about 18 days more at 2,000 new units a day: if")
    nearer = read(both(1000, 1060, hours=hours), now=STARTED + 2 * DAY + 1).forecast
    assert nearer.units < forecast.units


def test_no_forecast_where_nothing_is_waited_for():
    assert read(both(1000, 1200, hours=2)).forecast is None
    worse = read(both(1000, 980, hours=48), now=STARTED + 2 * DAY + 1).forecast
    assert (worse.units, worse.days) == (None, None)
    assert "no gain to be shown" in worse.text
    over = running(SPEC)
    over = replace(over, phases=(replace(over.phases[0], ended=STARTED + DAY),))
    assert report(SumsStore(both(1000, 1010), over), "medical-v2", now=LONG_AFTER).forecast is None
    assert read(both(1000, 1010), now=LONG_AFTER).forecast.text == "no new units came in the last week"


def test_a_holdout_is_read_and_never_acted_on():
    spec = replace(SPEC, mode=Mode.HOLDOUT)
    for new, told in ((1200, "difference +0.1"), (800, "difference -0.1")):
        found = read(both(1000, new), spec)
        assert (found.verdict.decision, found.verdict.rule) == ("undecided", "holdout")
        assert told in found.verdict.text
        assert found.arms[0].verdict.decision == "undecided"
    assert any(note.startswith("holdout:") for note in found.notes)


def test_looks_that_only_act_skip_what_decides_nothing():
    spec = replace(SPEC, secondary=(TOKENS,), segments=(LANGUAGE,))
    store = SumsStore(with_tokens(), running(spec))
    found = report(store, "medical-v2", now=LONG_AFTER, points=0)
    assert (found.arms[0].secondary, found.arms[0].segments, found.forecast) == ((), (), None)


def test_what_waits_is_told_in_the_verdict():
    mean = MetricSpec("seconds", Kind.MEAN, higher_is_better=False)
    rows = {arm: Moments.of(np.random.default_rng(1).normal(1, 0.3, 300)) for arm in ("control", "new")}
    made = [replace(b, moments={**b.moments, "seconds": rows[b.arm]}) for b in both(150, 150, 300)]
    found = read(made, replace(SPEC, primary=mean))
    assert (found.verdict.decision, found.verdict.rule) == ("undecided", "too-few-units")
    assert "nothing caps seconds" in found.verdict.text
    assert "about 900 more units of both arms" in found.verdict.text
    primary = found.arms[0].primary
    assert primary.waiting.units == 900
    assert math.isinf(primary.low)


def test_a_guardrail_of_last_values_waits_for_the_window():
    """The next outcome takes a last value back; a sum or a mean of a young unit only moves on."""
    young = [bucket(arm, 1000, 500, errors) for arm, errors in (("control", 10), ("new", 200))]
    for aggregate, rule in ((Aggregate.MAX, "guardrail"), (Aggregate.LAST, "too-few-units")):
        spec = replace(SPEC, guardrails=(replace(SPEC.guardrails[0], aggregate=aggregate),))
        assert read(young, spec, now=STARTED + 3601).verdict.rule == rule
        assert read(young, spec).verdict.rule == "guardrail"
