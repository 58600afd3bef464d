"""How long an experiment takes: known sizes, what history adds, and what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.experiments.management.sizes import SizeAnswer, SizeQuestion
from router.experiments.management.sizing import is_whole, size_of
from router.experiments.model import Kind
from router.experiments.stats import Metric, Plan, size_for

SOLVED = SizeQuestion("solved", Kind.PROPORTION, baseline=0.5, units_per_day=800.0)
SECONDS = SizeQuestion("seconds", Kind.MEAN, baseline=5.0, deviation=3.0, units_per_day=800.0)


def answer(question: SizeQuestion, **changes: Any) -> SizeAnswer:
    return size_of(replace(question, **changes))


def refused(question: SizeQuestion, **changes: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        answer(question, **changes)
    return {v.field: v.description for v in caught.value.violations}


def test_units_and_days_of_an_effect() -> None:
    found = answer(SOLVED, effect=0.05, weights=(90, 10))
    metric = Metric("solved", Kind.PROPORTION)
    expected = size_for(metric, 0.5, 0.05, share=0.1, plan=Plan(units=found.fixed_units))
    assert (found.units, found.fixed_units, found.least_units) == (
        expected.units,
        expected.fixed,
        expected.least,
    )
    assert found.days == pytest.approx(found.units / 800)
    assert 1.5 < found.factor < 2
    assert found.half_units < found.units
    half = answer(SOLVED, effect=0.05, weights=(90, 10), enrolment=0.5)
    assert half.days == pytest.approx(2 * found.days)


@pytest.mark.parametrize("budget", [{"days": 14.0}, {"units": 11_200}, {"days": 99.0, "units": 11_200}])
def test_the_smallest_effect_of_a_budget(budget: dict[str, Any]) -> None:
    found = answer(SOLVED, **budget)
    assert found.effect is not None
    assert found.units <= 11_200
    assert answer(SOLVED, effect=0.97 * found.effect, **budget).units > 11_200
    falling = answer(replace(SOLVED, higher_is_better=False), **budget)
    assert falling.effect == pytest.approx(-found.effect)


def test_without_anything_it_is_the_usual_plan() -> None:
    found = answer(SOLVED)
    assert found.units <= 5000
    assert "the smallest effect that 5,000 units find" in found.notes[0]


def test_several_arms_share_the_level_and_count_together() -> None:
    two, four = (answer(SOLVED, effect=0.05, weights=(1,) * n) for n in (2, 4))
    assert four.units > 2 * two.units
    assert "3 arms against control: each is sized at a level of 0.0167" in four.notes[0]
    uneven = answer(SOLVED, effect=0.05, weights=(0.4, 0.1, 0.5))
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
    found = answer(SOLVED, baseline=0.001, effect=0.02, weights=(98, 2))
    assert found.units == found.least_units > 30_000
    assert "50 ones and as many zeros are needed at this split" in found.notes[0]


def test_what_is_out_of_reach_is_told_with_numbers() -> None:
    found = answer(SOLVED, effect=0.05, weights=(90, 10), days=14.0)
    (note,) = found.notes
    assert note.startswith(
        f"out of reach: {found.units:,} units are needed, 14 days bring 11,200; the smallest"
    )
    asked = answer(SECONDS, effect=0.1, weights=(98, 2), units=1000)
    assert any("1,000 are there; no effect is found by then" in note for note in asked.notes)


def test_a_mean_needs_no_baseline() -> None:
    found = answer(SECONDS, baseline=None, effect=0.3)
    assert math.isnan(found.baseline)
    assert found.units == answer(SECONDS, effect=0.3).units


def test_a_rate_of_0_can_still_grow() -> None:
    assert answer(SOLVED, baseline=0.0).effect == pytest.approx(0.0056, rel=0.1)
    assert refused(SOLVED, baseline=0.0, higher_is_better=False) == {
        "baseline": "is 0 already: nothing can be better"
    }


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"metric": "a b"}, "metric.name", "1 to 63 letters"),
        ({"cap": 3.0}, "metric.cap", "belongs to a mean"),
        ({"baseline": 1.5}, "baseline", "lies within 0 and 1"),
        ({"baseline": math.nan}, "baseline", "must be a finite number"),
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
        ({"baseline": None}, "baseline", "no experiment told of solved yet"),
        ({"days": 3.0, "units_per_day": None}, "units_per_day", "needed with days"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SOLVED, **changes)
    assert list(found) == [field]
    assert told in found[field]


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"deviation": 0.0}, "deviation", "seconds would have the same value for every unit"),
        ({"deviation": -1.0}, "deviation", "above 0"),
        ({"deviation": None}, "deviation", "how much do its units differ?"),
        ({"cap": 4.0}, "deviation", "is at most 2, got 3"),
        ({"cap": 8.0, "effect": 4.0}, "effect", "5 and +4 make 9, and the mean seconds lies within 0 and 8"),
        ({"least": 2.0}, "metric.floor", "only with a cap"),
    ],
)
def test_what_is_wrong_with_a_mean_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SECONDS, **changes)
    assert list(found) == [field]
    assert told in found[field]


def test_everything_wrong_is_named_at_once() -> None:
    wrong = refused(SOLVED, metric="", weights=(1.0,), alpha=3.0, days=-1.0, effect=0.0)
    assert set(wrong) == {"metric.name", "weights", "alpha", "days", "effect"}


def test_when_history_is_not_needed() -> None:
    assert is_whole(SOLVED)
    assert is_whole(replace(SOLVED, units_per_day=None))
    assert not is_whole(replace(SOLVED, units_per_day=None, route="medical"))
    assert not is_whole(replace(SOLVED, units_per_day=None, days=3.0))
    assert is_whole(replace(SOLVED, kind=None))  # a proportion, for want of anything else
    assert not is_whole(replace(SOLVED, kind=None, route="medical"))
    assert not is_whole(replace(SOLVED, baseline=None))
    assert not is_whole(replace(SECONDS, deviation=None))
