"""Bandits: weights by Thompson sampling, and the epochs in which they are used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.experiments.model import AuditEntry, Exposure, Kind, Lifecycle, Mode, StoredOutcome, Unanswered
from router.experiments.report.build import report
from router.experiments.report.source import REWEIGHT, latest_weights
from router.experiments.runtime import LiveExperiments
from router.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments_bandit.bandit import (
    Epochs,
    best_chances,
    epoch_of,
    epoch_seed,
    judged,
    kept_weights,
    primary_sums,
    thompson_weights,
)
from tests.experiments.made import SPEC, experiment
from tests.experiments.memory_store import MemoryStore

CLICK = ComparedMetric("click", Kind.PROPORTION)
MINUTES = ComparedMetric("minutes", Kind.MEAN, higher_is_better=False)
EDITS = ComparedMetric("edits", Kind.RATIO)
COUNTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=5)


def rates(*arms: tuple[int, int]) -> dict[str, Moments]:
    """Arms by successes and failures."""
    return {f"arm{i}": Moments(s + f, (float(s),), (float(s),)) for i, (s, f) in enumerate(arms)}


def values(*arms: list[float]) -> dict[str, Moments]:
    return {f"arm{i}": Moments.of(found) if found else Moments.empty(1) for i, found in enumerate(arms)}


@pytest.mark.slow
@given(COUNTS, st.floats(0.01, 0.2), st.text(max_size=5))
def test_weights_sum_to_one_and_respect_the_floor(counts, floor, seed):
    found = thompson_weights(CLICK, rates(*counts), floor, seed)
    assert math.fsum(found.values()) == pytest.approx(1.0, abs=1e-12)
    assert min(found.values()) >= floor - 1e-12
    assert found == thompson_weights(CLICK, rates(*counts), floor, seed)


def test_the_seed_is_of_the_epoch():
    arms = rates((30, 70), (34, 66))
    seeds = [epoch_seed("trial", 1, epoch) for epoch in (1, 2)] + [epoch_seed("trial", 2, 1)]
    found = [thompson_weights(CLICK, arms, 0.05, seed)["arm1"] for seed in seeds]
    assert len(set(found)) == 3
    assert max(found) - min(found) < 0.03  # they differ by chance alone


@pytest.mark.parametrize("floor", [0.0, -0.1, 0.51, math.nan])
def test_a_floor_that_does_not_fit_is_refused(floor):
    with pytest.raises(InvalidRequest, match="floor"):
        thompson_weights(CLICK, rates((1, 1), (1, 1)), floor, "s")


def test_chances_of_proportions_are_those_of_the_betas():
    found = best_chances(CLICK, rates((20, 80), (30, 70)), "s")
    draws = np.random.default_rng(1).beta([[21], [31]], [[81], [71]], (2, 200_000))
    assert found["arm1"] == pytest.approx((draws[1] > draws[0]).mean(), abs=0.01)
    assert sum(found.values()) == pytest.approx(1.0)


def test_less_is_better_where_the_metric_says_so():
    rng = np.random.default_rng(2)
    arms = values(list(rng.exponential(3.0, 300)), list(rng.exponential(2.0, 300)))
    assert best_chances(MINUTES, arms, "s")["arm1"] > 0.99
    assert best_chances(ComparedMetric("minutes", Kind.MEAN), arms, "s")["arm1"] < 0.01


def test_nothing_known_is_equal_and_equal_values_are_ties():
    assert best_chances(MINUTES, values([], [], []), "s") == pytest.approx(
        dict.fromkeys(["arm0", "arm1", "arm2"], 1 / 3)
    )
    assert best_chances(MINUTES, values([1.0] * 9, [1.0] * 5), "s") == pytest.approx(
        {"arm0": 0.5, "arm1": 0.5}
    )
    empty = {"arm0": Moments.empty(2), "arm1": Moments.of([1.0], [0.0])}
    assert best_chances(EDITS, empty, "s") == pytest.approx({"arm0": 0.5, "arm1": 0.5})


def test_a_young_arm_is_neither_believed_nor_given_up():
    rng = np.random.default_rng(3)
    old = list(rng.normal(1.0, 1.0, 500))
    lucky = best_chances(ComparedMetric("m", Kind.MEAN), values(old, [3.0]), "s")["arm1"]
    unlucky = best_chances(ComparedMetric("m", Kind.MEAN), values(old, [-1.0]), "s")["arm1"]
    unseen = best_chances(ComparedMetric("m", Kind.MEAN), values(old, []), "s")["arm1"]
    assert 0.1 < unlucky < unseen < lucky < 0.9
    assert unseen == pytest.approx(0.5, abs=0.02)


def test_ratios_by_their_linearised_values():
    rng = np.random.default_rng(4)
    asked = rng.integers(1, 6, (2, 400)).astype(float)
    edits = rng.poisson(asked * np.array([[0.5], [0.8]])).astype(float)
    arms = {f"arm{i}": Moments.of(edits[i], asked[i]) for i in range(2)}
    assert best_chances(EDITS, arms, "s")["arm1"] > 0.99


def played(adaptive: bool, seed: int) -> float:
    """Successes lost against the best arm: 20 epochs of 100 units on arms of 0.10, 0.12 and 0.20."""
    truth, rng = np.array([0.10, 0.12, 0.20]), np.random.default_rng(seed)
    shares, wins, units, lost = np.full(3, 1 / 3), np.zeros(3), np.zeros(3), 0.0
    for epoch in range(20):
        shown = rng.multinomial(100, shares)
        wins += rng.binomial(shown, truth)
        units += shown
        lost += float(shown @ (truth.max() - truth))
        if adaptive:
            arms = rates(*((int(w), int(n - w)) for w, n in zip(wins, units, strict=True)))
            shares = np.array(
                list(thompson_weights(CLICK, arms, 0.05, epoch_seed("sim", seed, epoch)).values())
            )
    return lost


@pytest.mark.slow
def test_less_is_lost_than_with_equal_shares():
    bandit, uniform = (np.mean([played(adaptive, seed) for seed in range(8)]) for adaptive in (True, False))
    assert uniform == pytest.approx(120, rel=0.05)
    assert bandit < 0.55 * uniform


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
                StoredOutcome(f"k-{n}", "success", float(i < won), BEGIN + 2, response_id=f"r-{n}")
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
    found = epoch_of(store, store.get("trial"), BEGIN + 200.0)
    assert found is not None
    assert (found.number, found.start) == (2, BEGIN + 200.0)
    assert found.weights["new"] == pytest.approx(0.95, abs=1e-6)
    (entry,) = store.trail("trial")
    assert (entry.act, entry.actor, entry.detail["units"]) == (REWEIGHT, "rule", {"control": 50, "new": 50})
    assert "new 0.950" in entry.reason


def test_within_an_epoch_nothing_changes_whoever_asks():
    store = filled()
    first = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    for i in range(50):  # the tide turns
        store.record([StoredOutcome(f"late{i}", "success", 1.0, BEGIN + 3, response_id=f"r-control{i}")])
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


@pytest.mark.parametrize("grace", [0.0, 30.0])
@pytest.mark.parametrize("missing", [Unanswered.EXCLUDED, Unanswered.ZERO])
def test_units_are_mature_before_they_are_rewards(grace, missing):
    spec = replace(BANDIT, primary=replace(BANDIT.primary, missing=missing), grace=grace)
    store = filled(spec)
    store.expose([Exposure("trial", 1, f"new-{i}", "new", BEGIN + 101, f"n{i}", 0.5) for i in range(200)])
    phase = store.get("trial").phases[0]

    def units(seconds: float) -> int:
        return int(primary_sums(store, "trial", phase, BEGIN + seconds + grace)["new"].n)

    later = 250 if missing is Unanswered.ZERO else 50
    assert [units(seconds) for seconds in (149.0, 150.0, 249.0, 250.0)] == [0, 50, 50, later]


async def test_weights_are_there_when_their_epoch_begins():
    store = filled()
    live = LiveExperiments(store)
    await live.refresh()
    await Epochs(live).look(BEGIN + 196.0)
    (one,) = live.assigner.snapshot.all()
    new = {time: one.at(BEGIN + time).arms[1].weight for time in (196.0, 199.9, 200.0)}
    assert new == {196.0: 0.5, 199.9: 0.5, 200.0: pytest.approx(0.95)}


async def test_the_assigner_gets_them_and_a_store_that_is_down_changes_nothing():
    store = filled()
    live = LiveExperiments(store)
    await live.refresh()
    epochs = Epochs(live)
    await epochs.look(BEGIN + 50.0)
    (one,) = live.assigner.snapshot.all()
    assert one.epochs == ()
    store.down = True
    await epochs.look(BEGIN + 210.0)
    assert live.assigner.snapshot.all() == (one,)
    store.down = False
    await epochs.look(BEGIN + 210.0)
    await epochs.look(BEGIN + 220.0)
    (one,) = live.assigner.snapshot.all()
    assert {arm.name: arm.weight for arm in one.at(BEGIN + 220.0).arms}["new"] == pytest.approx(0.95)
    assert one.at(BEGIN + 199.0).arms[0].weight == 0.5
    assert len(store.trail("trial")) == 1


def test_the_report_shows_the_weights_in_use():
    store = filled()
    epoch = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    assert epoch is not None
    found = report(store, "trial", now=BEGIN + 120.0, judges={"bandit": judged})
    assert {n.arm: n.weight for n in found.numbers} == epoch.weights


def test_entries_that_somebody_else_wrote_are_left_alone():
    store, (phase,) = filled(), filled().get("trial").phases
    for detail in ({}, {"epoch": 1, "phase": 1, "weights": {"control": 1.0}}, {"epoch": "1", "phase": 1}):
        store.audit(AuditEntry("trial", BEGIN, "someone", REWEIGHT, "", detail))
    assert (kept_weights(store.trail("trial"), phase, 1), latest_weights(store.trail("trial"), phase)) == (
        None,
        {},
    )
    found = epoch_of(store, store.get("trial"), BEGIN + 110.0)
    assert found is not None
    assert found.weights == latest_weights(store.trail("trial"), phase)
