"""Every verdict, the rule that gave it, and what overrules what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.checks import Guardrail, Maturity, SampleRatio, sample_ratio
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.missing import Missing
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.planned import Looks
from router.extensions.experiments.verdict import (
    ExperimentDesign,
    ExperimentVerdict,
    PipelineHealth,
    VerdictDecision,
    judge,
)

pytestmark = pytest.mark.slow

SUCCESS = ComparedMetric("success", Kind.PROPORTION)
ERRORS = ComparedMetric("errors", Kind.PROPORTION, higher_is_better=False)
DESIGN = ExperimentDesign(
    "control",
    {"control": 0.5, "new": 0.5},
    SUCCESS,
    (Guardrail(ERRORS, 0.03),),
    plan=SequencePlan(units=4000),
)
SOUND = PipelineHealth(sample_ratio((2000, 2000), (0.5, 0.5)), Maturity(3900, 4000))


def ones(count: int, units: int = 2000) -> Moments:
    return Moments(units, (float(count),), (float(count),))


def verdict(
    success: Moments,
    errors: Moments | None = None,
    health: PipelineHealth = SOUND,
    design: ExperimentDesign = DESIGN,
) -> ExperimentVerdict:
    sums = {
        "control": {"success": ones(1000), "errors": ones(40)},
        "new": {"success": success, "errors": errors or ones(40)},
    }
    return judge(design, sums, health)


CASES = {
    "better": (ones(1150), None, DESIGN, VerdictDecision.PROMOTE, "primary-better"),
    "equal": (ones(1005), None, DESIGN, VerdictDecision.UNDECIDED, "primary-open"),
    "worse": (ones(850), None, DESIGN, VerdictDecision.HARM, "primary-worse"),
    "better but broken": (ones(1150), ones(200), DESIGN, VerdictDecision.HARM, "guardrail"),
    "better, guardrail unsure": (ones(1150), ones(95), DESIGN, VerdictDecision.UNDECIDED, "guardrail-open"),
    "better, guardrail without units": (
        ones(1150),
        Moments.empty(1),
        DESIGN,
        VerdictDecision.UNDECIDED,
        "guardrail-open",
    ),
    "not worse": (
        ones(1000),
        None,
        replace(DESIGN, margin=0.06),
        VerdictDecision.PROMOTE,
        "primary-not-worse",
    ),
    "worse by more than the margin": (
        ones(780),
        None,
        replace(DESIGN, margin=0.04),
        VerdictDecision.HARM,
        "primary-worse",
    ),
    "too few for the rule": (
        ones(1150),
        None,
        replace(DESIGN, min_units=2500),
        VerdictDecision.UNDECIDED,
        "too-few-units",
    ),
    "nobody yet": (Moments.empty(1), Moments.empty(1), DESIGN, VerdictDecision.UNDECIDED, "too-few-units"),
    "harm among the first": (ones(15, 15), ones(15, 15), DESIGN, VerdictDecision.HARM, "guardrail"),
}


@pytest.mark.parametrize("name", CASES)
def test_decisions_and_their_rules(name):
    success, errors, design, decision, rule = CASES[name]
    found = verdict(success, errors, design=design)
    assert (found.verdict.decision, found.verdict.rule, found.arm) == (decision, rule, "new")
    assert found.verdict.text


COST = ComparedMetric("cost", Kind.PROPORTION, higher_is_better=False)


@pytest.mark.parametrize(
    ("success", "cost", "decision", "rule"),
    [
        (ones(1000), ones(800), VerdictDecision.PROMOTE, "primary-not-worse"),
        (ones(1000), ones(1000), VerdictDecision.UNDECIDED, "guardrail-open"),
        (ones(1000), ones(1200), VerdictDecision.HARM, "guardrail"),
        (ones(930), ones(800), VerdictDecision.UNDECIDED, "primary-open"),
        (ones(780), ones(800), VerdictDecision.HARM, "primary-worse"),
    ],
)
def test_not_worse_and_cheaper_asks_for_both(success, cost, decision, rule):
    design = replace(DESIGN, margin=0.06, guardrails=(Guardrail(COST, 0.0, improve=True),))
    arms = {"control": {"success": ones(1000), "cost": ones(1000)}, "new": {"success": success, "cost": cost}}
    found = judge(design, arms, SOUND)
    assert (found.verdict.decision, found.verdict.rule) == (decision, rule)
    if rule.startswith("guardrail"):
        assert "must become better" in found.verdict.text


def test_what_must_improve_has_no_margin():
    with pytest.raises(InvalidRequest, match="must be 0 where the metric has to improve"):
        Guardrail(COST, 0.1, improve=True)


def test_the_text_has_the_numbers():
    text = verdict(ones(1150)).verdict.text
    assert text == "success: +7.5 points (2.6 to 12.4), 57.5 % against 50.0 %"
    broken = verdict(ones(1000), ones(200)).verdict.text
    assert broken.startswith("errors: +8.0 points (")
    assert broken.endswith("10.0 % against 2.0 %; at most 3.0 points worse is allowed")


def test_less_may_be_better():
    design = replace(DESIGN, primary=ERRORS, guardrails=(Guardrail(SUCCESS, 0.2),))
    assert verdict(ones(1000), ones(5), design=design).verdict.decision is VerdictDecision.PROMOTE
    assert verdict(ones(1000), ones(100), design=design).verdict.decision is VerdictDecision.HARM


def test_immature_experiments_promote_nothing_but_stop_for_harm():
    early = replace(SOUND, maturity=Maturity(1000, 4000))
    assert verdict(ones(1150), health=early).verdict.rule == "immature"
    assert verdict(ones(850), health=early).verdict.decision is VerdictDecision.HARM


FAULTS = {
    "sample-ratio": replace(SOUND, sample_ratio=sample_ratio((2200, 1800), (0.5, 0.5))),
    "missing-outcomes": replace(SOUND, missing={"new": Missing(0.05, 0.25, True, (-0.3, -0.1))}),
    "crossed-units": replace(SOUND, crossed=0.02),
    "mixed-digests": replace(SOUND, mixed=("adapter of new",)),
}


@pytest.mark.parametrize("rule", FAULTS)
@pytest.mark.parametrize("success", [1150, 1000, 850])
def test_faults_of_the_pipeline_make_every_verdict_invalid(rule, success):
    found = verdict(ones(success), health=FAULTS[rule])
    assert (found.verdict.decision, found.verdict.rule) == (VerdictDecision.INVALID, rule)
    (arm,) = found.arms
    assert arm.verdict.decision is VerdictDecision.INVALID
    assert arm.verdict.decision == "invalid"


def test_an_invalid_verdict_names_all_faults_with_numbers():
    both = replace(FAULTS["sample-ratio"], crossed=0.02)
    text = verdict(ones(1150), health=both).verdict.text
    assert "2,200, 1,800 instead of 2,000, 2,000" in text
    assert "2.0 % of units saw more than one arm" in text


def three(first: int, second: int) -> ExperimentVerdict:
    design = replace(DESIGN, weights={"control": 0.4, "new": 0.3, "newer": 0.3})
    sums = {
        arm: {"success": ones(count), "errors": ones(40)}
        for arm, count in (("control", 1000), ("new", first), ("newer", second))
    }
    return judge(design, sums, SOUND)


def test_the_best_of_several_arms_is_promoted():
    found = three(1150, 1200)
    assert (found.verdict.decision, found.arm) == (VerdictDecision.PROMOTE, "newer")
    assert [a.verdict.decision for a in found.arms] == [VerdictDecision.PROMOTE] * 2
    assert [a.gain for a in found.arms] == pytest.approx([0.075, 0.1])


def test_one_harmful_arm_does_not_stop_the_others():
    found = three(850, 1000)
    assert found.verdict.decision is VerdictDecision.UNDECIDED
    assert [a.verdict.decision for a in found.arms] == [VerdictDecision.HARM, VerdictDecision.UNDECIDED]
    assert three(850, 850).verdict.decision is VerdictDecision.HARM


def test_p_values_are_holms():
    found = three(1060, 1000)
    alone = found.arms[0].primary
    assert alone is not None
    assert found.arms[0].p == pytest.approx(min(1.0, 2 * alone.p))


def test_equal_arms_get_no_verdict_at_any_look():
    rng, wrong = np.random.default_rng(8), 0
    design = replace(DESIGN, plan=SequencePlan(units=600))
    for _ in range(25):
        drawn = {arm: {m: rng.random(600) < p for m, p in RATES.items()} for arm in DESIGN.weights}
        for n in range(60, 600, 90):
            sums = {a: {m: ones(int(x[:n].sum()), n) for m, x in of.items()} for a, of in drawn.items()}
            decision = judge(design, sums, SOUND).verdict.decision
            if decision is not VerdictDecision.UNDECIDED:
                wrong += 1
                break
    assert wrong <= 1


RATES = {"success": 0.5, "errors": 0.02}


def test_sums_that_are_missing_are_named():
    with pytest.raises(InvalidRequest, match=r"outcomes\[new\]\[errors\]"):
        judge(DESIGN, {a: {"success": ones(1)} for a in ("control", "new")} | BARE, SOUND)


BARE = {"control": {"success": ones(1), "errors": ones(1)}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"control": "old"}, "control"),
        ({"weights": {"control": 1.0}}, "weights"),
        ({"weights": {"control": 0.5, "new": 0.4}}, "weights"),
        ({"guardrails": (Guardrail(SUCCESS, 0.1),)}, "guardrails"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"min_matured": 2.0}, "min_matured"),
        ({"min_units": 1}, "min_units"),
    ],
)
def test_bad_designs_are_refused(change, field):
    with pytest.raises(InvalidRequest) as caught:
        replace(DESIGN, **change)
    assert field in [v.field for v in caught.value.violations]


def test_a_plan_is_shared_by_the_arms():
    design = replace(DESIGN, weights={"control": 0.5, "new": 0.3, "newer": 0.2})
    assert design.plan_for("new").units == 3200
    assert replace(design, plan=SequencePlan(units=200)).plan_for("newer").units == 200


def test_an_alarm_of_an_earlier_look_still_blocks():
    later = SampleRatio((2000, 2000), (2000, 2000), -2.0, peak=8.0)
    assert verdict(ones(1150), health=replace(SOUND, sample_ratio=later)).verdict.rule == "sample-ratio"


@pytest.mark.parametrize(
    "weights", [{"control": 0.9, "new": 0.1}, {"control": 0.9, "new": 0.05, "newer": 0.05}]
)
@pytest.mark.parametrize("higher", [True, False])
def test_arms_alike_are_neither_promoted_nor_stopped_at_unequal_splits(weights, higher):
    """A rate of 1.5 % at 90/10 was promoted in 17.5 % of such runs, at 90/5/5 in 35 %; with the direction
    reversed the same runs were stopped for harm."""
    metric = ComparedMetric("success", Kind.PROPORTION, higher_is_better=higher)
    design = ExperimentDesign("control", weights, metric, plan=SequencePlan(units=5000), min_units=20)
    rng, called = np.random.default_rng(17), 0
    for _ in range(10):
        arm, one = rng.choice(list(weights), 5000, p=list(weights.values())), rng.random(5000) < 0.015
        for look in range(500, 5001, 500):
            sums = {
                a: {"success": ones(int(one[:look][arm[:look] == a].sum()), int((arm[:look] == a).sum()))}
                for a in weights
            }
            health = PipelineHealth(
                sample_ratio([1] * len(weights), [1 / len(weights)] * len(weights)), Maturity(look, look)
            )
            if judge(design, sums, health).verdict.decision is not VerdictDecision.UNDECIDED:
                called += 1
                break
    assert called <= 1


def at_looks(*counts: tuple[int, int]) -> Moments:
    """Of one arm: (ones, units) at each look."""
    s, n = (np.array(column, np.float64) for column in zip(*counts, strict=True))
    return Moments(n, (s,), (s,))


EVEN = at_looks((250, 500), (500, 1000), (750, 1500), (1000, 2000), (1250, 2500))
FEW = at_looks((10, 500), (20, 1000), (30, 1500), (40, 2000), (50, 2500))


def planned_verdict(
    new: tuple[int, ...],
    errors: Moments = FEW,
    design: ExperimentDesign = DESIGN,
    planned: bool = True,
) -> ExperimentVerdict:
    """By the course of ones among 500 units more at each look; both arms have as many. 4,000 are planned."""
    looks = len(new)
    course = {
        "new": {
            "success": Looks(
                cut(EVEN, looks),
                at_looks(*zip(new, (500 * (i + 1) for i in range(looks)), strict=True)),
                units_of(looks),
            ),
            "errors": Looks(cut(FEW, looks), cut(errors, looks), units_of(looks)),
        }
    }
    units = 500 * looks
    sums = {
        "control": {"success": ones(units // 2, units), "errors": ones(units // 50, units)},
        "new": {"success": ones(new[-1], units), "errors": ones(int(errors.sums[0][looks - 1]), units)},
    }
    return judge(design, sums, SOUND, course=course if planned else None)


def always_verdict(new: tuple[int, ...], *args: Any, **given: Any) -> ExperimentVerdict:
    """Without a course, so by the always-valid sequence alone."""
    return planned_verdict(new, *args, planned=False, **given)


def units_of(looks: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    each = 500.0 * np.arange(1, looks + 1)
    return each, each


def cut(sums: Moments, end: int) -> Moments:
    return Moments(sums.n[:end], (sums.sums[0][:end],), (sums.products[0][:end],))


def ends(found: ExperimentVerdict) -> tuple[float, float]:
    primary = found.arms[0].primary
    assert primary is not None
    return primary.interval


def test_a_better_arm_is_promoted_by_the_planned_bound():
    found = planned_verdict((260, 520, 785, 1075))
    assert found.verdict.rule == "primary-better"
    assert ends(found)[0] > 0
    assert always_verdict((260, 520, 785, 1075)).verdict.rule == "primary-open"


def test_what_was_shown_by_the_planned_size_is_kept_afterwards():
    shown = planned_verdict((260, 520, 785, 1075))
    later = planned_verdict((260, 520, 785, 1075, 1300))
    assert planned_verdict((260, 520, 770, 1020, 1290)).verdict.rule == "planned-size-reached"
    assert (shown.verdict.decision, later.verdict.decision) == (VerdictDecision.PROMOTE,) * 2
    assert shown.arms[0].p == later.arms[0].p
    assert ends(shown)[0] == ends(later)[0] > 0


def test_a_difference_that_has_turned_is_not_promoted():
    found = planned_verdict((260, 520, 785, 1075, 1245))
    assert found.verdict.decision is VerdictDecision.UNDECIDED
    assert ends(found)[0] < 0


def test_no_difference_at_the_planned_size_is_a_rule_of_its_own():
    found = planned_verdict((255, 505, 755, 1010)).verdict
    assert (found.decision, found.rule) == (VerdictDecision.UNDECIDED, "planned-size-reached")
    assert found.text.startswith("no difference found at the planned size of 4,000 units: success")
    assert planned_verdict((255, 505, 755)).verdict.rule == "primary-open"


def test_harm_is_shown_by_the_always_valid_sequence_alone():
    for course in ((240, 480, 715, 955), (225, 450, 675, 850)):
        planned, always = planned_verdict(course), always_verdict(course)
        assert planned.verdict.decision == always.verdict.decision
        assert ends(planned)[1] == ends(always)[1]


def test_a_guardrail_is_within_its_margin_by_the_planned_bound_and_beyond_it_by_the_always_valid_one():
    near = at_looks((20, 500), (40, 1000), (60, 1500), (75, 2000))
    course = (280, 560, 840, 1150)
    planned, always = planned_verdict(course, near), always_verdict(course, near)
    assert (planned.verdict.rule, always.verdict.rule) == ("primary-better", "guardrail-open")
    assert planned.arms[0].guardrails[0].comparison.interval.high < 0.03
    assert (
        planned_verdict(course, at_looks(*((200 * i, 500 * i) for i in range(1, 5)))).verdict.rule
        == "guardrail"
    )


def test_not_worse_is_shown_by_the_planned_bound_too():
    design = replace(DESIGN, margin=0.04)
    course = (250, 500, 750, 1000)
    planned, always = planned_verdict(course, design=design), always_verdict(course, design=design)
    assert (planned.verdict.rule, always.verdict.rule) == ("primary-not-worse", "primary-open")
    assert ends(planned)[0] > -0.04
