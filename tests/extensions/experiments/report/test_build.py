"""A report, with all that it says of secondary metrics and segments, and the speed of now."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.document import facts
from router.extensions.experiments.model import (
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    MetricSpec,
    Mode,
    SegmentSpec,
    Unanswered,
)
from router.extensions.experiments.next_step import following
from router.extensions.experiments.report.build import report
from router.extensions.experiments.stats.compare import SequencePlan, compare
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.words import differs, effect_lines, heading
from tests.extensions.experiments.report.sums import (
    DAY,
    LONG_AFTER,
    SPEC,
    STARTED,
    SumsStore,
    both,
    bucket,
    ones,
    running,
)


def test_a_better_arm_is_promoted_with_its_numbers():
    store = SumsStore(both(1000, 1150), responses={"control": 3000, "new": 3100})
    found = report(store, "medical-v2", now=LONG_AFTER)
    assert (found.verdict.decision, found.verdict.rule, found.arm) == ("promote", "primary-better", "new")
    (arm,) = found.arms
    assert arm.primary is not None
    assert arm.primary.values == (0.5, 0.575)
    assert 0 < arm.primary.low < arm.primary.effect < arm.primary.high
    assert arm.adjusted_p == arm.primary.p < 0.05
    assert arm.guardrails[0].state == "within"
    assert arm.guardrails[0].margin == 0.03
    assert not arm.guardrails[0].higher_is_better
    assert [(n.arm, n.units, n.matured, n.responses, n.expected) for n in found.numbers] == [
        ("control", 2000, 2000, 3000, 2000.0),
        ("new", 2000, 2000, 3100, 2000.0),
    ]
    assert found.numbers[1].answered == {"success": 2000, "error": 2000}
    assert not any(check.failed for check in found.checks)


def test_units_within_their_window_are_left_out_and_counted():
    buckets = [*both(500, 500, 1000), *(bucket(arm, 1000, 999, at=30) for arm in ("control", "new"))]
    found = report(SumsStore(buckets), "medical-v2", now=STARTED + 30 * 3600.0)
    assert found.arms[0].primary is not None
    assert found.arms[0].primary.values == (0.5, 0.5)
    assert [(n.units, n.matured) for n in found.numbers] == [(2000, 1000)] * 2
    assert found.verdict.rule == "immature"
    assert dict(facts(found))["Open window"].startswith(
        "2,000 of 4,000 users did not have their whole window"
    )


def test_built_in_harm_is_seen_before_a_window_has_passed():
    early = {"control": ones(5, 500), "new": ones(100, 500)}
    buckets = [bucket(arm, 500, 250, moments={"error@600": found}) for arm, found in early.items()]
    (phase,) = running().phases
    store = SumsStore(buckets, replace(running(), phases=(replace(phase, early=600.0),)))
    for seconds, rule in ((3600 + 599.0, "immature"), (3600 + 600.0, "guardrail")):
        found = report(store, "medical-v2", now=STARTED + seconds)
        assert found.verdict.rule == rule
    (arm,) = found.arms
    assert (arm.primary, arm.guardrails) == (None, ())
    assert [(rail.metric, rail.units, rail.age, rail.state) for rail in arm.early] == [
        ("error", (500, 500), 600.0, "beyond")
    ]
    assert "in the first 600 seconds" in found.verdict.text


def test_a_guardrail_waits_for_its_own_window():
    buckets = [bucket("control", 500, 250, 5), bucket("new", 500, 250, 100)]
    for window, rule in ((0.0, "immature"), (7200.0, "guardrail")):
        spec = replace(SPEC, guardrails=(replace(SPEC.guardrails[0], window=window),), grace=100.0)
        assert read(buckets, spec, now=STARTED + 3600 + 7299).verdict.rule == "immature"
        found = read(buckets, spec, now=STARTED + 3600 + 7300)
        assert found.verdict.rule == rule
    assert found.arms[0].guardrails[0].age == 7300.0


def test_nothing_is_judged_before_the_start():
    found = report(SumsStore([], Experiment("draft", SPEC)), "draft", now=1.0)
    assert (found.phase, found.verdict.decision, found.verdict.rule) == (0, "undecided", "not-started")
    assert found.arms == ()


def test_a_phase_without_units_is_undecided_and_sound():
    found = report(SumsStore([]), "medical-v2", now=LONG_AFTER)
    assert (found.verdict.decision, found.verdict.rule) == ("undecided", "too-few-units")
    assert found.arms[0].primary is None
    assert not any(check.failed for check in found.checks)


def test_a_phase_is_asked_by_its_number():
    first = ExperimentPhase(1, STARTED, "a", "b", SPEC, ended=STARTED + DAY)
    second = ExperimentPhase(2, STARTED + DAY, "c", "d", SPEC, reason="weights changed")
    store = SumsStore(both(500, 500), replace(running(), phases=(first, second)))
    assert report(store, "medical-v2", now=LONG_AFTER).phase == 2
    found = report(store, "medical-v2", 1, now=LONG_AFTER)
    assert "this is phase 1; the last one is 2" in found.notes
    with pytest.raises(InvalidRequest, match="there is no phase 3; there are: 1, 2"):
        report(store, "medical-v2", 3, now=LONG_AFTER)


def test_an_earlier_phase_is_told_with_its_own_plan():
    """Its third arm was taken out since."""
    arms = (*(replace(arm, weight=0.4) for arm in SPEC.arms), ArmSpec("third", 0.2))
    first = ExperimentPhase(1, STARTED, "a", "b", replace(SPEC, arms=arms), ended=STARTED + DAY)
    second = ExperimentPhase(2, STARTED + DAY, "c", "d", SPEC, reason="taken out: third")
    store = SumsStore(both(500, 500), replace(running(), phases=(first, second)))
    found = report(store, "medical-v2", 1, now=LONG_AFTER)
    assert found.experiment.spec == SPEC
    assert found.judged.spec.arms == arms
    assert [arm.arm for arm in found.arms] == ["new", "third"]


def test_a_faulty_sample_ratio_is_remembered_and_blocks():
    store = SumsStore([*both(1000, 1150), bucket("new", 600, 300, at=1)])
    found = report(store, "medical-v2", now=LONG_AFTER)
    assert (found.verdict.decision, found.verdict.rule) == ("invalid", "sample-ratio")
    assert found.arms[0].verdict == found.verdict
    assert [check.name for check in found.checks if check.failed] == ["sample-ratio"]
    assert store.peaks[0] > math.log(1000)
    sound = SumsStore(both(1000, 1150), peak=store.peaks[0])
    assert report(sound, "medical-v2", now=LONG_AFTER).verdict.decision == "invalid"
    assert sound.peaks == []


def test_a_ratio_without_answers_yet_is_no_error():
    ratio = MetricSpec("thumbs", Kind.RATIO)
    buckets = [
        replace(b, moments={**b.moments, "thumbs": Moments(b.exposed, (0.0, 0.0), (0.0, 0.0, 0.0))})
        for b in both(500, 500)
    ]
    store = SumsStore(buckets, running(replace(SPEC, primary=ratio)))
    assert report(store, "medical-v2", now=LONG_AFTER).verdict.rule in ("too-few-units", "missing-outcomes")


def test_shadow_arms_have_no_verdict():
    found = report(SumsStore([], running(replace(SPEC, mode=Mode.SHADOW))), "medical-v2", now=LONG_AFTER)
    assert (found.verdict.decision, found.verdict.rule) == ("undecided", "shadow")
    assert found.arms[0].verdict == found.verdict
    assert heading(found).startswith("RESULT: answers of shadow arms are in the log, and nobody saw them.")


def test_the_arms_interval_is_the_one_of_the_statistics():
    found = report(SumsStore(both(1000, 1100)), "medical-v2", now=LONG_AFTER)
    sums = [Moments(2000, (s,), (s,)) for s in (1000.0, 1100.0)]
    expected = compare(ComparedMetric("success", Kind.PROPORTION), *sums, SequencePlan(units=4000))
    arm = found.arms[0].primary
    assert arm is not None
    assert arm.high == expected.interval.high
    assert arm.low > expected.interval.low  # by the planned bound
    assert arm.p < expected.p


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
        assert (one.verdict.decision, one.verdict.rule) == ("undecided", "planned-size-reached")
        tokens = one.arms[0].secondary[0]
        assert (tokens.metric, tokens.cap) == ("tokens", 400.0)
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
    assert differs(found) == "The difference is not the same for all values of language: read each row."


def test_no_segment_is_significant_by_fishing():
    spec = replace(SPEC, segments=(LANGUAGE,))
    (found,) = read(by_language({"en": 0.08, "fr": 0.02, "de": 0.03}), spec).arms[0].segments
    assert not found.differ
    assert "what holds for everybody is the best guess for each row" in differs(found)


def test_a_label_that_no_request_has_is_no_segment():
    spec = replace(SPEC, segments=(LANGUAGE, SegmentSpec("plan")))
    (found,) = read(by_language({"en": 0.1}), spec).arms[0].segments
    assert (found.label, list(found.effects)) == ("language", ["en"])
    assert differs(found) == "All units have one value of language."
    assert read(by_language({"(none)": 0.1}), spec).arms[0].segments == ()


def test_days_are_told_from_a_day_of_traffic_on():
    early = read(both(1000, 1040), now=STARTED + 3600.0)
    assert early.units_per_day is None
    assert following(early).startswith("Next: wait. After a day of traffic the report says how long")
    later = read(both(1000, 1040, hours=48), now=STARTED + 2 * DAY + 1)
    assert later.units_per_day == pytest.approx(2000, rel=0.02)


def test_an_open_window_is_said_before_all_else():
    found = read(both(10, 12, units=22), now=STARTED + 7200.0)
    assert (found.verdict.decision, found.verdict.rule) == ("undecided", "immature")
    assert heading(found) == (
        "WAIT: of 44 users none had the whole window of 1 day yet, and outcomes count after it."
    )


@pytest.mark.parametrize(
    ("missing", "over"), [(Unanswered.ZERO, "per user"), (Unanswered.EXCLUDED, "per user with a value")]
)
def test_a_mean_says_what_it_is_over(missing, over):
    revenue = MetricSpec("revenue", Kind.MEAN, cap=100.0, missing=missing)
    sums = {"revenue": Moments.of([1.0, 2.0, 3.0] * 100), "error": ones(0, 300)}
    buckets = [
        bucket(arm, 300, 0, moments=sums, answered={"revenue": 300, "error": 300})
        for arm in ("control", "new")
    ]
    (line,) = effect_lines(read(buckets, replace(SPEC, primary=revenue)))
    assert f"2.00 {over} with new" in line


def test_no_speed_where_nothing_is_waited_for():
    assert read(both(1000, 1200, hours=48), now=STARTED + 4 * DAY).units_per_day is None
    over = replace(running(SPEC), phases=(replace(running(SPEC).phases[0], ended=STARTED + DAY),))
    assert report(SumsStore(both(1000, 1010), over), "medical-v2", now=LONG_AFTER).units_per_day is None
    assert read(both(1000, 1010), now=LONG_AFTER).units_per_day == 0.0


def test_a_holdout_is_read_and_never_acted_on():
    spec = replace(SPEC, mode=Mode.HOLDOUT)
    for new, told in ((1200, "+10.0 points ("), (800, "−10.0 points (")):
        found = read(both(1000, new), spec)
        assert (found.verdict.decision, found.verdict.rule) == ("undecided", "holdout")
        assert told in found.verdict.text
        assert found.arms[0].verdict.decision == "undecided"
    assert any(note.startswith("this compares those who took part") for note in found.notes)


def test_looks_that_only_act_skip_what_decides_nothing():
    spec = replace(SPEC, secondary=(TOKENS,), segments=(LANGUAGE,))
    store = SumsStore(with_tokens(), running(spec))
    found = report(store, "medical-v2", now=LONG_AFTER, details=False)
    assert (found.arms[0].secondary, found.arms[0].segments) == ((), ())


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
