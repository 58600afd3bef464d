"""Slices of a switchback: arms in random order in each block, parts, and plans that cannot work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from router.experiments.assignment import ArmAssignment, Assigner, running_of
from router.experiments.model import Experiment, ExperimentPhase, Kind, Lifecycle, MetricSpec, Mode
from router.experiments.plans import Known, plan_problems
from router.experiments.slices import SlicePart, arm_at, part_at, wash_out_of
from router.experiments.store.tables import from_json, to_json
from router.units import fraction
from tests.experiments.made import decision, request
from tests.experiments.plans import plan

START = 1_000_000.0
SPEC = plan(mode=Mode.SWITCHBACK, slice_length=100.0, planned_slices=20, window=400.0)


@pytest.mark.parametrize("arms", [("a", "b"), ("a", "b", "c")])
def test_each_block_has_each_arm_once_in_an_order_of_its_own(arms):
    many = len(arms)
    orders = Counter(
        tuple(arm_at("salt", server, block * many + i, arms) for i in range(many))
        for server in ("one", "two")
        for block in range(300)
    )
    assert all(sorted(order) == list(arms) for order in orders)
    ways = 2 if many == 2 else 6
    assert len(orders) == ways
    assert min(orders.values()) > 600 / ways * 0.75
    one, two = ([arm_at("salt", server, i, arms) for i in range(60)] for server in ("one", "two"))
    assert one != two


def test_a_slice_has_a_wash_out_and_two_halves():
    parts = [part_at(SPEC, "s", seconds).part for seconds in (0, 49.9, 50, 74.9, 75, 99.9)]
    assert parts == ["wash-out", "wash-out", "first", "first", "second", "second"]
    assert [part_at(SPEC, "s", t).number for t in (99.9, 100.0, 250.0)] == [0, 1, 2]
    longer = replace(SPEC, slice_length=3600.0)
    assert (wash_out_of(longer), wash_out_of(replace(longer, wash_out=0.0))) == (360.0, 0.0)
    part = part_at(SPEC, "s-1", 260.0)
    assert SlicePart.parsed(str(part)) == part
    assert SlicePart.parsed("ann") is SlicePart.parsed("s/x/first") is SlicePart.parsed("s/1/third") is None


def running(spec=SPEC, holdout=0.0):
    phase = ExperimentPhase(1, START, "enrol", "vary", spec)
    return running_of(Experiment("x", spec, Lifecycle.RUNNING, (phase,)), lambda purpose: purpose, holdout)


def assigned(assigner, at, unit=""):
    return assigner.assign(request(unit), decision(), START + at)


def test_the_whole_route_of_a_server_has_one_arm_at_a_time():
    assigner = Assigner("here")
    assigner.use([running()])
    for at in (10.0, 60.0, 110.0, 290.0):
        found = [assigned(assigner, at, unit) for unit in ("", "ann", "ben")]
        assert len({(one.arm.name, one.unit, one.propensity) for one in found}) == 1
        number = int(at // 100)
        assert found[0].arm.name == arm_at("vary", "here", number, ("old", "new"))
        assert SlicePart.parsed(found[0].unit).number == number
        (place,) = assigner.places(assigner.snapshot.all(), request(""), START + at)
        assert place.arm == found[0].arm.name


def test_units_of_the_holdout_stay_out():
    assigner = Assigner("here")
    assigner.use([running(holdout=0.5)])
    out = next(u for i in range(50) if fraction("holdout", u := f"u{i}") < 0.5)
    assert assigned(assigner, 60.0, out) is None
    assert isinstance(assigned(assigner, 60.0, ""), ArmAssignment)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("slice_length", {"slice_length": 0.5}),
        ("wash_out", {"wash_out": 51.0}),
        ("window", {"window": 150.0}),
        ("planned_slices", {"planned_slices": 10}),
        ("enrolment", {"enrolment": 0.5}),
        ("route", {"route": ""}),
        ("primary.covariate", {"primary": MetricSpec("x", Kind.PROPORTION, covariate=True)}),
        ("arms", {"arms": (replace(SPEC.arms[0], weight=0.9), replace(SPEC.arms[1], weight=0.1))}),
    ],
)
def test_a_plan_that_cannot_work_is_refused_by_field(field, changed):
    known = Known(lambda name, version="": None)
    assert not plan_problems(SPEC, known)
    found = {problem.field for problem in plan_problems(replace(SPEC, **changed), known)}
    assert any(name.startswith(field) or (field == "route" and name == "mode") for name in found), found


def test_without_its_plugin_it_is_refused():
    known = Known(lambda name, version="": None, has_mode=lambda mode: mode != "switchback")
    (problem,) = plan_problems(SPEC, known)
    assert problem.field == "mode"
    assert "experiments_switchback" in problem.description


def test_an_experiment_that_an_earlier_release_kept_is_read():
    kept = to_json(Experiment("x", plan()))
    for name in ("slice_length", "wash_out", "planned_slices"):
        kept = kept.replace(f'"{name}"', f'"{name}_gone"')
    assert from_json(kept, "e").spec == plan()
