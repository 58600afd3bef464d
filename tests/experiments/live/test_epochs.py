"""A bandit's weights by the clock: made once an epoch, kept, and the same after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.experiments.live.epochs import Epochs, epoch_of, sums
from router.experiments.live.runtime import Experiments
from router.experiments.model import AuditEntry, Exposure, Lifecycle, Mode, Outcome, Unanswered
from router.experiments.report.build import report
from router.experiments.reweighting import ACT, kept, latest
from tests.experiments.live.made import SPEC, experiment
from tests.experiments.memory_store import MemoryStore

BANDIT = replace(SPEC, mode=Mode.BANDIT, epoch=100.0, floor=0.05, window=50.0)
BEGIN = 1000.0  # of its phase


def filled(spec=BANDIT, wins: tuple[int, int] = (10, 40), units: int = 50) -> MemoryStore:
    """Units of both arms in the first epoch, some with an outcome of 1 and the others of 0."""
    store = MemoryStore()
    store.create(experiment(spec=spec))
    for arm, won in zip(("control", "new"), wins, strict=True):
        names = [f"{arm}{i}" for i in range(units)]
        store.expose([Exposure("trial", 1, n, arm, BEGIN + 1, f"r-{n}", 0.5) for n in names])
        store.record(
            [
                Outcome(f"k-{n}", "success", float(i < won), BEGIN + 2, response_id=f"r-{n}")
                for i, n in enumerate(names)
            ]
        )
    return store


def test_the_first_epoch_has_the_plans_weights():
    store = filled()
    assert epoch_of(store, store.get("trial"), BEGIN + 94.9) is None
    assert store.trail("trial") == ()


def test_an_epoch_follows_the_outcomes_and_is_kept():
    store = filled()
    found = epoch_of(store, store.get("trial"), BEGIN + 100.0)
    assert found is not None
    assert (found.number, found.start) == (1, BEGIN + 100.0)
    assert found.weights["new"] == pytest.approx(0.95, abs=1e-6)
    (entry,) = store.trail("trial")
    assert (entry.act, entry.actor, entry.detail["units"]) == (ACT, "rule", {"control": 50, "new": 50})
    assert "new 0.950" in entry.reason


def test_within_an_epoch_nothing_changes_whoever_asks():
    store = filled()
    first = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    for i in range(50):  # the tide turns
        store.record([Outcome(f"late{i}", "success", 1.0, BEGIN + 3, response_id=f"r-control{i}")])
    assert epoch_of(store, store.get("trial"), BEGIN + 190.0) == first
    later = epoch_of(store, store.get("trial"), BEGIN + 250.0)
    assert later is not None
    assert (later.number, later.start) == (2, BEGIN + 200.0)
    assert later.weights["control"] > 0.9
    assert len(store.trail("trial")) == 2


def test_another_phase_begins_again():
    store = filled()
    epoch_of(store, store.get("trial"), BEGIN + 110.0)
    second = experiment(spec=BANDIT, phase=2)
    assert epoch_of(store, second, 2 * BEGIN + 10.0) is None


@pytest.mark.parametrize(
    "changed", [{"state": Lifecycle.STOPPED}, {"phases": ()}], ids=["stopped", "never started"]
)
def test_only_running_bandits_have_epochs(changed):
    store = filled()
    assert epoch_of(store, replace(store.get("trial"), **changed), BEGIN + 500.0) is None
    assert epoch_of(filled(SPEC), experiment(), BEGIN + 500.0) is None


def test_units_that_count_as_zero_have_their_whole_window_first():
    spec = replace(BANDIT, primary=replace(BANDIT.primary, missing=Unanswered.ZERO))
    store = filled(spec)
    store.expose([Exposure("trial", 1, f"new-{i}", "new", BEGIN + 90, f"n{i}", 0.5) for i in range(200)])
    phase = store.get("trial").phases[0]
    assert int(sums(store, "trial", phase, BEGIN + 100.0)["new"].n) == 50
    assert int(sums(store, "trial", phase, BEGIN + 200.0)["new"].n) == 250


async def test_weights_are_there_when_their_epoch_begins():
    store = filled()
    live = Experiments(store)
    await live.refresh()
    await Epochs(live).look(BEGIN + 96.0)
    (one,) = live.assigner.snapshot.all()
    new = {time: one.at(BEGIN + time).arms[1].weight for time in (96.0, 99.9, 100.0)}
    assert new == {96.0: 0.5, 99.9: 0.5, 100.0: pytest.approx(0.95)}


async def test_the_assigner_gets_them_and_a_store_that_is_down_changes_nothing():
    store = filled()
    live = Experiments(store)
    await live.refresh()
    epochs = Epochs(live)
    await epochs.look(BEGIN + 50.0)
    (one,) = live.assigner.snapshot.all()
    assert one.epochs == ()
    store.down = True
    await epochs.look(BEGIN + 110.0)
    assert live.assigner.snapshot.all() == (one,)
    store.down = False
    await epochs.look(BEGIN + 110.0)
    await epochs.look(BEGIN + 120.0)
    (one,) = live.assigner.snapshot.all()
    assert {arm.name: arm.weight for arm in one.at(BEGIN + 120.0).arms}["new"] == pytest.approx(0.95)
    assert one.at(BEGIN + 99.0).arms[0].weight == 0.5
    assert len(store.trail("trial")) == 1


def test_the_report_shows_the_weights_in_use():
    store = filled()
    epoch = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    assert epoch is not None
    found = report(store, "trial", now=BEGIN + 120.0)
    assert {n.arm: n.weight for n in found.numbers} == epoch.weights


def test_entries_that_somebody_else_wrote_are_left_alone():
    store, (phase,) = filled(), filled().get("trial").phases
    for detail in ({}, {"epoch": 1, "phase": 1, "weights": {"control": 1.0}}, {"epoch": "1", "phase": 1}):
        store.audit(AuditEntry("trial", BEGIN, "someone", ACT, "", detail))
    assert (kept(store.trail("trial"), phase, 1), latest(store.trail("trial"), phase)) == (None, {})
    found = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    assert found is not None
    assert found.weights == latest(store.trail("trial"), phase)
