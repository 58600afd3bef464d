"""How long an experiment takes: known sizes, and what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind, MetricSpec
from router.extensions.experiments.sizing import SizeAnswer, SizeQuestion, size_of
from router.extensions.experiments.stats.moments import ComparedMetric
from router.extensions.experiments.stats.planning import size_for
from tests.extensions.experiments.plans import plan

SOLVED_SIZE = SizeQuestion(MetricSpec("solved", Kind.PROPORTION), baseline=0.5, units_per_day=800.0)
SECONDS = SizeQuestion(MetricSpec("seconds", Kind.MEAN), baseline=5.0, deviation=3.0, units_per_day=800.0)


def changed(question: SizeQuestion, **changes: Any) -> SizeQuestion:
    """With other fields, of the question or of its metric."""
    of_metric = {name: changes.pop(name) for name in list(changes) if name in MetricSpec.__annotations__}
    return replace(question, metric=replace(question.metric, **of_metric), **changes)


def answer(question: SizeQuestion, **changes: Any) -> SizeAnswer:
    return size_of(changed(question, **changes))


def refused(question: SizeQuestion, **changes: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        answer(question, **changes)
    return {v.field: v.description for v in caught.value.violations}


def test_units_and_days_of_an_effect() -> None:
    found = answer(SOLVED_SIZE, effect=0.05, weights=(90, 10))
    metric = ComparedMetric("solved", Kind.PROPORTION)
    expected = size_for(metric, 0.5, 0.05, share=0.1)
    assert (found.units, found.fixed_units, found.least_units) == (
        expected.units,
        expected.fixed,
        expected.least,
    )
    assert found.days == pytest.approx(found.units / 800)
    assert found.factor == pytest.approx(1.2, abs=1e-3)
    assert answer(SOLVED_SIZE, effect=0.05).factor == pytest.approx(1.1, abs=1e-3)
    assert found.half_units < found.units
    half = answer(SOLVED_SIZE, effect=0.05, weights=(90, 10), enrolment=0.5)
    assert half.days == pytest.approx(2 * found.days)


def test_users_without_an_outcome_are_counted_where_they_are_left_out() -> None:
    whole, tenth = (answer(SOLVED_SIZE, effect=0.05, outcome_share=share) for share in (1.0, 0.1))
    for name in ("units", "fixed_units", "half_units", "least_units"):
        assert getattr(tenth, name) == pytest.approx(10 * getattr(whole, name), abs=10)
    assert tenth.days == pytest.approx(10 * whole.days, rel=0.01)
    assert "10.0 % of units have solved" in tenth.notes[0]
    assert answer(SOLVED_SIZE, units=50_000, outcome_share=0.1).effect == pytest.approx(
        answer(SOLVED_SIZE, units=5000).effect, rel=1e-3
    )
    assert refused(SOLVED_SIZE, effect=0.05, outcome_share=0.0).keys() == {"outcome_share"}


@pytest.mark.parametrize("budget", [{"days": 14.0}, {"units": 11_200}, {"days": 99.0, "units": 11_200}])
def test_the_smallest_effect_of_a_budget(budget: dict[str, Any]) -> None:
    found = answer(SOLVED_SIZE, **budget)
    assert found.effect is not None
    assert found.units <= 11_200
    assert answer(SOLVED_SIZE, effect=0.97 * found.effect, **budget).units > 11_200
    falling = answer(SOLVED_SIZE, higher_is_better=False, **budget)
    assert falling.effect == pytest.approx(-found.effect)


def test_without_anything_it_is_the_usual_plan() -> None:
    found = answer(SOLVED_SIZE)
    assert found.units <= 5000
    assert "the smallest effect that 5,000 units find" in found.notes[0]


def test_several_arms_share_the_level_and_count_together() -> None:
    two, four = (answer(SOLVED_SIZE, effect=0.05, weights=(1,) * n) for n in (2, 4))
    assert four.units > 2 * two.units
    assert "3 arms against control: each is sized at a level of 0.0167" in four.notes[0]
    uneven = answer(SOLVED_SIZE, effect=0.05, weights=(0.4, 0.1, 0.5))
    assert uneven.units > four.units  # the smallest arm decides


def test_what_has_no_cap_waits_for_units_in_the_smaller_arm() -> None:
    found = answer(SECONDS, weights=(98, 2), days=3.0)
    assert (found.effect, found.units, found.least_units, found.days) == (None, 0, 37_500, 37_500 / 800)
    assert (
        "no effect is found in 2,400 units: 750 units are needed in each arm, since seconds" in found.notes[0]
    )
    capped = answer(SECONDS, weights=(98, 2), effect=2.0, cap=20.0)
    assert capped.least_units == 5000
    assert "the effect would be clear sooner: 100 units are needed in each arm" in capped.notes[0]


def test_rare_events_are_waited_for() -> None:
    found = answer(SOLVED_SIZE, baseline=0.001, effect=0.02, weights=(98, 2))
    assert found.units == found.least_units > 30_000
    assert "50 ones and as many zeros are needed at this split" in found.notes[0]


def test_what_is_out_of_reach_is_told_with_numbers() -> None:
    found = answer(SOLVED_SIZE, effect=0.04, weights=(90, 10), days=14.0)
    (note,) = found.notes
    assert note.startswith(
        f"out of reach: {found.units:,} units are needed, 11,200 are there; the smallest effect is"
    )
    asked = answer(SECONDS, effect=0.1, weights=(98, 2), units=1000)
    assert any("1,000 are there; no effect is found by then" in note for note in asked.notes)


def test_a_mean_needs_no_baseline() -> None:
    assert answer(SECONDS, baseline=None, effect=0.3).units == answer(SECONDS, effect=0.3).units


def test_a_rate_of_0_can_still_grow() -> None:
    assert answer(SOLVED_SIZE, baseline=0.0).effect == pytest.approx(0.004, rel=0.1)
    assert refused(SOLVED_SIZE, baseline=0.0, higher_is_better=False) == {
        "baseline": "is 0 already: nothing can be better"
    }


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"baseline": 1.5}, "baseline", "must lie within 0 and 1"),
        ({"baseline": math.nan}, "baseline", "must lie within 0 and 1"),
        ({"deviation": 1.0}, "deviation", "leave it out"),
        ({"effect": 0.0}, "effect", "other than 0"),
        ({"effect": math.inf}, "effect", "other than 0"),
        ({"effect": 0.6}, "effect", "is impossible: 0.5 and +0.6 make 1.1"),
        ({"baseline": 0.0, "effect": 1.0}, "effect", "would be alike"),
        ({"weights": (1.0,)}, "weights", "got 1"),
        ({"weights": (0.5, 0.0)}, "weights", "got 0.5/0"),
        ({"weights": (1.0, math.nan)}, "weights", "numbers above 0"),
        ({"weights": (1.0,) * 33}, "weights", "two to 32"),
        ({"units_per_day": 0.0}, "units_per_day", "above 0"),
        ({"enrolment": 1.1}, "enrolment", "at most 1"),
        ({"days": math.nan}, "days", "above 0"),
        ({"units": 10**13}, "units", "at most"),
        ({"alpha": 0.5}, "alpha", "at most 0.2"),
        ({"power": 0.01}, "power", "above alpha"),
        ({"power": 1.0}, "power", "at most 0.999"),
        ({"baseline": None}, "baseline", "what is solved in control?"),
        ({"days": 3.0, "units_per_day": None}, "units_per_day", "needed with days"),
        ({"effect": 1e-300}, "effect", "more units than can be counted"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SOLVED_SIZE, **changes)
    assert list(found) == [field]
    assert told in found[field]


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"deviation": 0.0}, "deviation", "above 0"),
        ({"deviation": -1.0}, "deviation", "above 0"),
        ({"deviation": None}, "deviation", "how much do units differ in seconds?"),
        ({"cap": 5.0}, "deviation", "is at most 2.5, got 3"),
        ({"cap": 8.0, "effect": 4.0}, "effect", "5 and +4 make 9, and the mean seconds lies within 0 and 8"),
    ],
)
def test_what_is_wrong_with_a_mean_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SECONDS, **changes)
    assert list(found) == [field]
    assert told in found[field]


def test_everything_wrong_is_named_at_once() -> None:
    wrong = refused(SOLVED_SIZE, weights=(1.0,), alpha=3.0, days=-1.0, effect=0.0)
    assert set(wrong) == {"weights", "alpha", "days", "effect"}


def test_the_question_of_a_plan_has_control_first() -> None:
    spec = plan()
    new, old = replace(spec.arms[1], weight=0.1), replace(spec.arms[0], weight=0.9)
    turned = replace(spec, arms=(new, old))
    assert SizeQuestion.of(turned).weights == (0.9, 0.1)
    assert SizeQuestion.of(turned).units == spec.planned_units
