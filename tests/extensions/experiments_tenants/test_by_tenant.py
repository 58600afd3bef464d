"""An experiment by tenant: arms in fixed numbers, judged once by how tenants could have been divided."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from router.experiments import words
from router.experiments.assignment import Assigner, running_of
from router.experiments.manager import Manager
from router.experiments.model import (
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    StoredOutcome,
)
from router.experiments.plans import Known
from router.experiments.report.build import report
from router.experiments.store.store import ExperimentStore
from router.experiments.tenants import arms_of_tenants, tenant_problems, tenant_warnings
from router.extensions.experiments_tenants.by_tenant import ByTenant
from router.units import unit_hash
from tests.experiments.made import decision, request
from tests.experiments.memory_store import MemoryStore
from tests.experiments.plans import plan

START, WINDOW = 1_000_000.0, 1000.0
LATER = 3 * WINDOW
SPEC = plan(by_tenant=True, unit="tenant", window=WINDOW, primary=MetricSpec("solved", Kind.PROPORTION))
TENANTS = tuple(f"tenant-{i}" for i in range(12))


def running(spec=SPEC, tenants=TENANTS):
    hashes = tuple(map(unit_hash, tenants))
    phase = ExperimentPhase(1, START, "enrol", "vary", spec, tenants=hashes)
    return Experiment("x", spec, Lifecycle.RUNNING, (phase,))


@pytest.mark.parametrize(("many", "weights", "counts"), [(10, (0.5, 0.5), (5, 5)), (11, (0.9, 0.1), (10, 1))])
def test_tenants_are_divided_in_fixed_numbers_in_a_random_order(many, weights, counts):
    arms = [replace(arm, weight=weight) for arm, weight in zip(SPEC.arms, weights, strict=True)]
    tenants = [f"t{i}" for i in range(many)]
    drawn = [arms_of_tenants(f"salt-{i}", tenants, arms) for i in range(200)]
    for found in drawn:
        assert tuple(Counter(found.values())[arm.name] for arm in arms) == counts
    each = Counter(found["t0"] for found in drawn)
    assert each["old"] == pytest.approx(200 * counts[0] / many, abs=25)


def test_all_requests_of_a_tenant_have_its_arm_and_later_tenants_take_no_part():
    assigner = Assigner()
    one = running_of(running(), str, 0.0)
    assigner.use([one])
    for tenant in TENANTS:
        found = [
            assigner.assign(replace(request(unit), tenant=tenant), decision(), START) for unit in ("", "ann")
        ]
        assert {(each.arm.name, each.unit) for each in found} == {
            (one.tenants[unit_hash(tenant)], unit_hash(tenant))
        }
        assert found[0].propensity == 0.5
    for tenant in ("", "new-tenant"):
        asked = replace(request("ann"), tenant=tenant)
        assert assigner.assign(asked, decision(), START) is None
        (place,) = assigner.places([one], asked, START)
        assert place.outside == "not_enrolled"


def test_a_plan_needs_a_clients_file_and_what_it_says_of_few_tenants():
    assert not list(tenant_problems(SPEC, TENANTS))
    assert not list(tenant_problems(SPEC, None))
    (problem,) = tenant_problems(SPEC, ())
    assert "clients file" in problem.description
    assert [p.field for p in tenant_problems(replace(SPEC, mode=Mode.BANDIT), TENANTS)] == ["by_tenant"]
    capped = MetricSpec("seconds", Kind.MEAN, cap=3.0, covariate=True)
    fields = [p.field for p in tenant_problems(replace(SPEC, secondary=(capped,)), TENANTS)]
    assert fields == ["secondary[0].covariate", "secondary[0].cap"]
    assert any("below 10" in text for text in tenant_warnings(SPEC, TENANTS[:9]))
    assert len(list(tenant_warnings(SPEC, TENANTS))) == 1
    assert not list(tenant_warnings(plan(), ()))


def test_a_start_takes_the_tenants_that_are_there():
    known = Known(lambda name, version="": None, tenants=lambda: {"b", "a"})
    manager = Manager(MemoryStore(), known)
    manager.create("x", SPEC, "me")
    assert manager.start("x", "", "me").phases[0].tenants == ("a", "b")


@pytest.fixture
def played(tmp_path):
    """`play` with a store of its own each time, closed at the end."""
    stores = []

    def made(*args, **options):
        stores.append(ExperimentStore(f"sqlite:///{tmp_path}/{len(stores)}.db"))
        return play(stores[-1], *args, **options)

    yield made
    for store in stores:
        store.close()


def play(store, spec=SPEC, gain=0.0, tenants=TENANTS, late=0, seed=1):
    """The store with answers of tenants, the largest with 20 times as many as the smallest; tenants solve
    about half, and `gain` more in the new arm. The last `late` come after the window."""
    dice = random.Random(seed)
    made = running(spec, tenants)
    kept = store.create(Experiment("x", spec))
    store.replace(replace(made, etag=kept.etag), AuditEntry("x", START, "me", "start", ""))
    one = running_of(made, str, 0.0)
    exposures, outcomes = [], []
    for number, tenant in enumerate(tenants):
        unit = unit_hash(tenant)
        rate = 0.5 + dice.uniform(-0.1, 0.1) + (gain if one.tenants[unit] == "new" else 0.0)
        begin = WINDOW + 1 if number >= len(tenants) - late else 0.0
        for i in range(10 * (1 + number)):
            key, at = f"{tenant}-{i}", START + begin + i
            exposures.append(
                Exposure("x", 1, unit, one.tenants[unit], at, key, 0.5, one.tenants[unit], "base")
            )
            solved = float(dice.random() < rate)
            outcomes.append(StoredOutcome(f"s-{key}", "solved", solved, at, response_id=key))
    store.expose(exposures)
    store.record(outcomes)
    return store


def judged(store, now=LATER):
    return report(store, "x", now=START + now, judges={"tenants": ByTenant(store).judge})


def test_verdicts_come_once_and_from_ten_tenants_on(played):
    better = played(gain=0.4)
    early = judged(better, now=WINDOW - 1)
    assert (early.verdict.decision, early.verdict.rule) == ("undecided", "planned-size")
    found = judged(better)
    (arm,) = found.arms
    assert (found.verdict.decision, found.verdict.rule, found.arm) == ("promote", "primary-better", "new")
    assert (arm.primary.units, arm.primary.method) == ((6, 6), "permutation")
    assert arm.primary.low < 0.4 < arm.primary.high
    assert arm.primary.low > 0
    assert not any(check.failed for check in found.checks)
    assert judged(played(gain=-0.4)).verdict.rule == "primary-worse"
    assert judged(played(gain=0.0)).verdict.rule == "primary-open"
    few = judged(played(gain=0.4, tenants=TENANTS[:9]))
    assert (few.verdict.decision, few.verdict.rule) == ("undecided", "too-few-units")
    assert "below 10" in few.verdict.text
    assert words.heading(few).startswith("WAIT: 9 tenants have solved")
    assert "the verdict comes after the last" in words.heading(early)
    assert judged(played(gain=0.4, late=3)).verdict.rule == "too-few-units"


@pytest.mark.parametrize(
    ("gain", "margin", "relative", "state"),
    [
        (0.0, 0.3, False, "within"),
        (-0.4, 0.1, False, "beyond"),
        (0.0, 0.6, True, "within"),
        (-0.1, 0.1, False, "open"),
    ],
)
def test_guardrails_are_read_when_the_time_is_over(played, gain, margin, relative, state):
    rail = replace(SPEC.primary, margin=margin, relative=relative)
    spec = replace(SPEC, primary=MetricSpec("other", Kind.PROPORTION), guardrails=(rail,))
    store = played(spec, gain=gain)
    (shown,) = judged(store).arms[0].guardrails
    assert shown.state == state
    assert judged(store, now=10.0).arms[0].guardrails[0].state == "open"
