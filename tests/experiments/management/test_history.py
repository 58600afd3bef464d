"""What earlier experiments tell: from which phase, and how much."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import InvalidRequest, StoreDown
from router.experiments.management.history import past_of, traffic_of
from router.experiments.management.manager import Manager
from router.experiments.management.plans import Known
from router.experiments.management.sizes import SizeQuestion
from router.experiments.management.sizing import size_of
from router.experiments.model import (
    Experiment,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    Outcome,
    Phase,
    Spec,
)
from tests.experiments.memory_store import MemoryStore
from tests.experiments.plans import SOLVED, plan

DAY = 86_400.0
START = 1_700_000_000.0
NOW = START + 10 * DAY
MINUTES = MetricSpec("minutes", Kind.MEAN)


def ran(
    store: MemoryStore, name: str, spec: Spec, started: float, *, units: int = 400, days: float = 4.0
) -> None:
    """A stopped experiment with `units` over `days`; every second of them solved it, minutes are 1, 2, 3."""
    phase = Phase(1, started, "e", "v", spec, started + days * DAY)
    store.create(Experiment(name, spec, Lifecycle.STOPPED, (phase,)))
    arms = [arm.name for arm in spec.arms]
    for i in range(units):
        at, unit = started + days * DAY * i / units, f"u{i}"
        store.expose([Exposure(name, 1, unit, arms[i % 2], at, f"{name}-{i}", 0.5)])
        for metric in spec.metrics:
            value = float(i // 2 % 2) if metric.kind is Kind.PROPORTION else float(i // 2 % 3)
            store.record([Outcome(f"{name}-{i}-{metric.name}", metric.name, value, at, f"{name}-{i}")])


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
    assert past.told.startswith("from experiments/last, phase 1: 200 units of control, 4 days")
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
    assert traffic.told == "from experiments/last, phase 1: 400 new units in its last 4 days"
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
        store.expose([Exposure("same", 1, f"u{i}", ("old", "new")[i % 2], START + i, f"r{i}", 0.5)])
        store.record([Outcome(f"k{i}", "minutes", 4.0, START + i, f"r{i}")])
    with pytest.raises(InvalidRequest, match=r"deviation: is 0.*experiments/same, phase 1: 30 units"):
        size_of(SizeQuestion("minutes", route="medical", effect=0.2), store, NOW)


def test_a_holdout_and_an_empty_phase_are_no_history() -> None:
    store = MemoryStore()
    ran(store, "held", plan(mode=Mode.HOLDOUT, route=""), START)
    ran(store, "empty", plan(), START, units=0)
    with pytest.raises(InvalidRequest, match="baseline: is not known: no experiment told of solved"):
        size_of(SizeQuestion("solved"), store, NOW)


def test_the_manager_asks_its_store(store: MemoryStore) -> None:
    manager = Manager(store, Known(lambda name, version="": None), clock=lambda: NOW)  # type: ignore[arg-type,return-value]
    assert manager.size(SizeQuestion("solved", route="medical", effect=0.1)).baseline == 0.5
    store.down = True
    with pytest.raises(StoreDown):
        manager.size(SizeQuestion("solved", route="medical", effect=0.1))
