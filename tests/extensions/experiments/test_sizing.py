"""How long an experiment takes: known sizes, what history adds, and what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import InvalidRequest, StoreDown
from router.extensions.experiments.manager import Manager
from router.extensions.experiments.model import (
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SizeAnswer,
    SizeQuestion,
    Spec,
    StoredOutcome,
)
from router.extensions.experiments.plans import Known
from router.extensions.experiments.sizing import is_whole, past_of, size_of, traffic_of
from router.extensions.experiments.stats.moments import ComparedMetric
from router.extensions.experiments.stats.planning import size_for
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.plans import SOLVED, plan

SOLVED_SIZE = SizeQuestion("solved", Kind.PROPORTION, baseline=0.5, units_per_day=800.0)
SECONDS = SizeQuestion("seconds", Kind.MEAN, baseline=5.0, deviation=3.0, units_per_day=800.0)


def answer(question: SizeQuestion, **changes: Any) -> SizeAnswer:
    return size_of(replace(question, **changes))


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
    whole, tenth = (answer(SOLVED_SIZE, effect=0.05, outcome_share=share) for share in (None, 0.1))
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
    falling = answer(replace(SOLVED_SIZE, higher_is_better=False), **budget)
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
        f"out of reach: {found.units:,} units are needed, 14 days bring 11,200; the smallest"
    )
    asked = answer(SECONDS, effect=0.1, weights=(98, 2), units=1000)
    assert any("1,000 are there; no effect is found by then" in note for note in asked.notes)


def test_a_mean_needs_no_baseline() -> None:
    found = answer(SECONDS, baseline=None, effect=0.3)
    assert math.isnan(found.baseline)
    assert found.units == answer(SECONDS, effect=0.3).units


def test_a_rate_of_0_can_still_grow() -> None:
    assert answer(SOLVED_SIZE, baseline=0.0).effect == pytest.approx(0.004, rel=0.1)
    assert refused(SOLVED_SIZE, baseline=0.0, higher_is_better=False) == {
        "baseline": "is 0 already: nothing can be better"
    }


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"metric": "a b"}, "metric", "1 to 63 letters"),
        ({"cap": 3.0}, "cap", "belongs to a mean"),
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
        ({"baseline": None}, "baseline", "no experiment has had solved yet"),
        ({"days": 3.0, "units_per_day": None}, "units_per_day", "needed with days"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SOLVED_SIZE, **changes)
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
        ({"least": 2.0}, "least", "only with a cap"),
    ],
)
def test_what_is_wrong_with_a_mean_is_named(changes: dict[str, Any], field: str, told: str) -> None:
    found = refused(SECONDS, **changes)
    assert list(found) == [field]
    assert told in found[field]


def test_everything_wrong_is_named_at_once() -> None:
    wrong = refused(SOLVED_SIZE, metric="", weights=(1.0,), alpha=3.0, days=-1.0, effect=0.0)
    assert set(wrong) == {"metric", "weights", "alpha", "days", "effect"}


def test_when_history_is_not_needed() -> None:
    assert is_whole(SOLVED_SIZE)
    assert is_whole(replace(SOLVED_SIZE, units_per_day=None))
    assert not is_whole(replace(SOLVED_SIZE, units_per_day=None, route="medical"))
    assert not is_whole(replace(SOLVED_SIZE, units_per_day=None, days=3.0))
    assert is_whole(replace(SOLVED_SIZE, kind=None))  # a proportion, for want of anything else
    assert not is_whole(replace(SOLVED_SIZE, kind=None, route="medical"))
    assert not is_whole(replace(SOLVED_SIZE, baseline=None))
    assert not is_whole(replace(SECONDS, deviation=None))


DAY = 86_400.0
START = 1_700_000_000.0
NOW = START + 10 * DAY
MINUTES = MetricSpec("minutes", Kind.MEAN)


def ran(
    store: MemoryStore, name: str, spec: Spec, started: float, *, units: int = 400, days: float = 4.0
) -> None:
    """A stopped experiment with `units` over `days`; every second of them solved it, minutes are 1, 2, 3."""
    phase = ExperimentPhase(1, started, "e", "v", spec, started + days * DAY)
    store.create(Experiment(name, spec, Lifecycle.STOPPED, (phase,)))
    arms = [arm.name for arm in spec.arms]
    for i in range(units):
        at, unit = started + days * DAY * i / units, f"u{i}"
        store.expose([Exposure(name, 1, unit, arms[i % 2], at, f"{name}-{i}")])
        for metric in spec.metrics:
            value = float(i // 2 % 2) if metric.kind is Kind.PROPORTION else float(i // 2 % 3)
            store.record([StoredOutcome(f"{name}-{i}-{metric.name}", metric.name, value, at, f"{name}-{i}")])


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    ran(made, "old", plan(), START - 40 * DAY, units=100)
    ran(made, "last", plan(primary=MINUTES, secondary=(SOLVED,), enrolment=0.5), START)
    ran(made, "other", plan(route="base"), START + DAY, units=60)
    return made


def test_the_last_phase_on_the_route_that_had_the_metric(store: MemoryStore) -> None:
    past = past_of(store, "medical", "solved", Kind.PROPORTION, NOW)
    assert past is not None
    assert (past.place, past.units, past.value) == ("experiments/last, phase 1", 200, 0.5)
    assert past.source.startswith("from experiments/last, phase 1: 200 units of control, 4 days")
    anywhere = past_of(store, "", "solved", None, NOW)
    assert anywhere is not None
    assert anywhere.place == "experiments/other, phase 1"
    assert past_of(store, "medical", "solved", Kind.MEAN, NOW) is None
    assert past_of(store, "legal", "solved", None, NOW) is None


def test_units_within_their_window_tell_nothing_yet(store: MemoryStore) -> None:
    early = past_of(store, "medical", "solved", Kind.PROPORTION, START + 1000)
    assert early is not None
    assert early.place == "experiments/old, phase 1"


def test_traffic_is_of_the_route_whatever_the_share(store: MemoryStore) -> None:
    traffic = traffic_of(store, "medical", "minutes", NOW)
    assert traffic is not None
    assert traffic.per_day == pytest.approx(200, rel=0.02)  # 100 a day of half the units
    assert traffic.source == "from experiments/last, phase 1: 400 new units in its last 4 days"
    other = traffic_of(store, "base", "never-seen", NOW)
    assert other is not None
    assert other.place == "experiments/other, phase 1"
    assert traffic_of(store, "legal", "solved", NOW) is None


def test_only_the_last_week_counts() -> None:
    store = MemoryStore()
    ran(store, "long", plan(window=3600.0), START, units=280, days=14.0)
    traffic = traffic_of(store, "medical", "solved", START + 30 * DAY)
    assert traffic is not None
    assert (traffic.units, traffic.days) == (pytest.approx(140, abs=2), 7.0)


@pytest.mark.slow
def test_a_question_is_completed_and_the_notes_say_from_where(store: MemoryStore) -> None:
    found = size_of(SizeQuestion("minutes", route="medical", effect=0.2), store, NOW)
    assert (found.baseline, found.units_per_day) == (
        pytest.approx(1.0, abs=0.02),
        pytest.approx(200, rel=0.02),
    )
    assert found.deviation == pytest.approx((2 / 3) ** 0.5, rel=0.02)
    assert found.days == pytest.approx(found.units / found.units_per_day)
    assert [note.partition(" from ")[2].partition(":")[0] for note in found.notes[:3]] == (
        ["experiments/last, phase 1"] * 3
    )
    given = size_of(SizeQuestion("minutes", route="medical", effect=0.2, deviation=2.0), store, NOW)
    assert given.deviation == 2.0
    with pytest.raises(InvalidRequest, match="deviation: of a proportion"):
        size_of(SizeQuestion("solved", route="medical", effect=0.2, deviation=2.0), store, NOW)


def test_a_cap_of_the_plan_is_not_that_of_history(store: MemoryStore) -> None:
    found = size_of(SizeQuestion("minutes", cap=9.0, effect=0.2, units_per_day=9.0), store, NOW)
    assert any(note.endswith("its values had no cap") for note in found.notes)


def test_a_metric_that_never_varied_is_told_with_its_place() -> None:
    store = MemoryStore()
    same: dict[str, Any] = {"primary": MINUTES}
    ran(store, "same", plan(**same), START, units=0)
    for i in range(60):
        store.expose([Exposure("same", 1, f"u{i}", ("old", "new")[i % 2], START + i, f"r{i}")])
        store.record([StoredOutcome(f"k{i}", "minutes", 4.0, START + i, f"r{i}")])
    with pytest.raises(InvalidRequest, match=r"deviation: is 0.*experiments/same, phase 1: 30 units"):
        size_of(SizeQuestion("minutes", route="medical", effect=0.2), store, NOW)


def test_a_holdout_and_an_empty_phase_are_no_history() -> None:
    store = MemoryStore()
    ran(store, "held", plan(mode=Mode.HOLDOUT, route=""), START)
    ran(store, "empty", plan(), START, units=0)
    with pytest.raises(InvalidRequest, match="baseline: is not known: no experiment has had solved"):
        size_of(SizeQuestion("solved"), store, NOW)


@pytest.mark.slow
def test_the_manager_asks_its_store(store: MemoryStore) -> None:
    manager = Manager(store, Known(lambda name, version="": None), clock=lambda: NOW)  # type: ignore[arg-type,return-value]
    assert manager.size(SizeQuestion("solved", route="medical", effect=0.1)).baseline == 0.5
    store.down = True
    with pytest.raises(StoreDown):
        manager.size(SizeQuestion("solved", route="medical", effect=0.1))
