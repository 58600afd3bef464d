"""Who is assigned, in which order of decisions, and what never changes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import pytest

from router.errors import InvalidRequest
from router.experiments.assignment import (
    ArmAssignment,
    Assigner,
    Outside,
    fraction,
    holdout_problem,
    running_of,
    unit_hash,
)
from router.experiments.assignment import NotAssignedReason as Why
from router.experiments.model import ArmSpec, Mode
from router.types import AdapterRef, Reason, RouterVariant
from tests.experiments.live.made import HOLDOUT, NEW, OLD, SPEC, decision, experiment, request, running

UNITS = [f"user-{i}" for i in range(400)]


def assigner(*found) -> Assigner:
    made = Assigner()
    made.use(found)
    return made


def arms(made: Assigner, now: float = 0.0) -> dict[str, str]:
    """Of those units that take part."""
    found = {unit: made.assign(request(unit), decision(), now) for unit in UNITS}
    return {unit: one.arm.name for unit, one in found.items() if isinstance(one, ArmAssignment)}


def test_a_unit_keeps_its_arm_and_both_arms_are_used():
    first, again = arms(assigner(running())), arms(assigner(running()))
    assert first == again
    assert set(first) == set(UNITS)
    assert 150 < Counter(first.values())["new"] < 250


def test_what_an_assignment_says():
    found = assigner(running()).assign(request("ann"), decision(), 0.0)
    assert isinstance(found, ArmAssignment)
    assert found.unit == unit_hash("ann")
    assert found.propensity == 0.5
    assert found.arm.adapter in (OLD, NEW)
    assert (found.running.name, found.running.phase) == ("trial", 1)


def test_ramping_never_reshuffles():
    some = arms(assigner(running(spec=replace(SPEC, enrolment=0.2))))
    more = arms(assigner(running(spec=replace(SPEC, enrolment=0.6))))
    assert 0 < len(some) < len(more) < len(UNITS)
    assert some.items() <= more.items()


def test_a_new_phase_shuffles():
    first, second = arms(assigner(running())), arms(assigner(running(phase=2)))
    assert 100 < sum(first[unit] != second[unit] for unit in UNITS) < 300


def test_only_its_route_takes_part():
    made = assigner(running())
    assert made.assign(request(), decision(AdapterRef("legal", "1.0.0")), 0.0) is None
    assert made.assign(request(), decision(None), 0.0) is None


def test_a_route_of_the_base():
    spec = replace(SPEC, route="base", arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5, NEW)))
    made = assigner(running(spec=spec))
    assert isinstance(made.assign(request(), decision(None), 0.0), ArmAssignment)
    assert made.assign(request(), decision(OLD), 0.0) is None


def test_a_named_version_never_takes_part_a_named_adapter_does():
    made = assigner(running())
    explicit = decision(OLD, Reason.EXPLICIT)
    assert made.assign(request(adapter="adapters/medical/versions/1.0.0"), explicit, 0.0) is None
    assert isinstance(made.assign(request(adapter="adapters/medical"), explicit, 0.0), ArmAssignment)


@pytest.mark.parametrize("unit", ["", "  ", "null", "undefined"])
def test_a_missing_unit_is_never_enrolled(unit):
    assert assigner(running()).assign(request(unit), decision(), 0.0) == Outside("trial", Why.UNIT_MISSING)


def test_the_unit_may_be_a_label():
    made = assigner(running(spec=replace(SPEC, unit_label="session")))
    found = made.assign(request("", session="s1"), decision(), 0.0)
    assert isinstance(found, ArmAssignment)
    assert found.unit == unit_hash("s1")
    assert isinstance(made.assign(request("ann"), decision(), 0.0), Outside)


def test_holdout_is_the_same_in_all_experiments():
    first, second = arms(assigner(running(holdout=0.3))), arms(assigner(running("other", holdout=0.3)))
    assert set(first) == set(second)
    assert 200 < len(first) < 360


def test_experiments_of_one_namespace_share_no_unit():
    halves = [replace(SPEC, namespace="users", slot=slot) for slot in ((0.0, 0.5), (0.5, 1.0))]
    made = assigner(*(running(name, spec) for name, spec in zip("ab", halves, strict=True)))
    found = {unit: made.assign(request(unit), decision(), 0.0) for unit in UNITS}
    names = Counter(one.running.name for one in found.values() if isinstance(one, ArmAssignment))
    assert sum(names.values()) == len(UNITS)
    assert min(names["a"], names["b"]) > 150


def test_bandit_weights_hold_from_their_start_and_are_the_propensity():
    made = assigner(running(spec=replace(SPEC, mode=Mode.BANDIT)))
    made.reweight("trial", 1, 100.0, {"control": 0.1, "new": 0.9})
    assert arms(made, 99.0) == arms(assigner(running()))
    shares = Counter(arms(made, 100.0).values())
    assert shares["new"] > 320
    one = made.assign(request("ann"), decision(), 100.0)
    assert isinstance(one, ArmAssignment)
    assert one.propensity == (0.9 if one.arm.name == "new" else 0.1)


def test_bandit_weights_outlive_a_refresh_but_not_their_phase():
    spec = replace(SPEC, mode=Mode.BANDIT)
    made = assigner(running(spec=spec))
    made.reweight("trial", 1, 100.0, {"control": 0.1, "new": 0.9})
    before = arms(made, 100.0)
    made.use([running(spec=spec)])
    assert arms(made, 100.0) == before
    made.use([running(spec=spec, phase=2)])
    assert Counter(arms(made, 100.0).values())["new"] < 250
    made.reweight("trial", 1, 200.0, {"control": 0.9, "new": 0.1})  # too late: that phase is over
    assert Counter(arms(made, 300.0).values())["new"] > 150


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InvalidRequest, match="weight"):
        assigner(running()).reweight("trial", 1, 0.0, {"control": 1.0})


def test_shadow_experiments_assign_nobody():
    made = assigner(running(spec=replace(SPEC, mode=Mode.SHADOW)))
    assert made.assign(request(), decision(), 0.0) is None
    assert [one.name for one in made.snapshot.shadows["medical"]] == ["trial"]


def test_router_experiments_take_requests_that_name_no_adapter():
    variant = ArmSpec("strict", 0.5, router=RouterVariant(threshold=0.9))
    made = assigner(running(spec=replace(SPEC, route="", arms=(ArmSpec("control", 0.5), variant))))
    assert isinstance(made.router(request(), 0.0), ArmAssignment)
    assert made.router(request(adapter="adapters/medical"), 0.0) is None
    assert made.assign(request(), decision(), 0.0) is None


def test_request_ids_are_warned_about_once(caplog):
    made = assigner(running())
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            made.assign(request(f"req-{number}", caller_id=f"req-{number}"), decision(), 0.0)
    assert len(caplog.records) == 1
    (text,) = made.warnings("trial")
    assert text == "a unit (routing.unit) is the id of this request: units must be the same at every request"
    assert made.warnings("other") == ()
    made.suspect("trial", "something else")
    made.use([])  # it has stopped
    assert len(made.warnings("trial")) == 2
    made.use([running(phase=2)])
    assert made.warnings("trial") == ()


def test_an_assignment_costs_less_than_50_microseconds_of_processor_time():
    spec = replace(SPEC, namespace="users", slot=(0.0, 0.9), enrolment=0.9)
    others = [running(f"e{i}", replace(spec, route=f"route{i}")) for i in range(50)]
    made, requests, costs = assigner(running(spec=spec, holdout=0.01), *others), map(request, UNITS), []
    for asked in requests:
        begin = time.process_time_ns()
        made.assign(asked, decision(), 0.0)
        costs.append(time.process_time_ns() - begin)
    assert median(costs) < 50_000


def test_an_experiment_that_cannot_be_assigned_by_is_left_out(caplog):
    bad = experiment(spec=replace(SPEC, arms=SPEC.arms[:1]))
    assert running_of(bad, str, 0.0) is None
    assert "trial is not served" in caplog.text


SHARE = 0.3
ROUTERS = replace(
    SPEC,
    route="",
    arms=(ArmSpec("control", 0.5), ArmSpec("strict", 0.5, router=RouterVariant(threshold=0.9))),
)


def made(*others, spec=HOLDOUT) -> Assigner:
    """With an experiment on a holdout of 0.3, and these."""
    found = Assigner()
    found.use([running("worth", spec, SHARE), *others])
    return found


def trial(spec=SPEC, name: str = "trial"):
    return running(name, spec, SHARE)


def sides(of: Assigner, *args, route: str = "medical", **fields) -> list[str]:
    return [one.arm.name for one in of.holdouts(request(*args, **fields), route, 0.0)]


def test_a_unit_of_the_holdout_is_control_and_no_other_is():
    of = made(trial())
    for unit in UNITS:
        (side,) = of.holdouts(request(unit), "medical", 0.0)
        held = fraction("salt-holdout", unit) < SHARE
        assert (side.arm.name, side.propensity) == (("out", SHARE) if held else ("in", 1 - SHARE))
        assert (side.unit, side.running.name, side.running.phase) == (unit_hash(unit), "worth", 1)
        assert isinstance(of.assign(request(unit), decision(), 0.0), ArmAssignment) is not held


def test_sides_have_their_shares():
    of = made(trial())
    found = Counter(sides(of, unit)[0] for unit in UNITS)
    assert 90 < found["out"] < 150
    assert sum(found.values()) == len(UNITS)


def test_serving_is_as_without_it():
    alone = Assigner()
    alone.use([trial()])
    beside = made(trial())
    for unit in UNITS:
        first, second = (one.assign(request(unit), decision(), 0.0) for one in (alone, beside))
        assert getattr(first, "arm", None) == getattr(second, "arm", None)
        assert beside.router(request(unit), 0.0) is None


def test_enrolment_and_namespace_make_no_difference():
    spec = replace(SPEC, enrolment=0.01, namespace="users", slot=(0.0, 0.1))
    of = made(trial(spec))
    assert sum(isinstance(of.assign(request(u), decision(), 0.0), ArmAssignment) for u in UNITS) < 10
    assert all(len(sides(of, unit)) == 1 for unit in UNITS)


@pytest.mark.parametrize(
    ("asked", "route"),
    [
        (request("ann"), "legal"),
        (request("ann"), "base"),
        (request(""), "medical"),
        (request("null"), "medical"),
        (request("ann", adapter="adapters/medical/versions/1.0.0"), "medical"),
    ],
    ids=["another route", "the base", "no unit", "a word for nobody", "a named version"],
)
def test_who_could_take_part_in_nothing_is_not_exposed(asked, route):
    assert made(trial()).holdouts(asked, route, 0.0) == ()


def test_it_is_for_splits_bandits_and_routers_and_not_for_shadows():
    assert sides(made(), "ann") == []
    assert sides(made(trial(replace(SPEC, mode=Mode.SHADOW))), "ann") == []
    assert len(sides(made(trial(replace(SPEC, mode=Mode.BANDIT))), "ann")) == 1
    of = made(trial(ROUTERS))
    assert len(sides(of, "ann", route="legal")) == len(sides(of, "ann", route="base")) == 1
    assert sides(of, "ann", adapter="adapters/legal", route="legal") == []


def test_two_of_them_are_both_exposed_and_one_is_no_reason_for_the_other():
    of = made(running("more", HOLDOUT, SHARE), trial())
    found = of.holdouts(request("ann"), "medical", 0.0)
    assert [one.running.name for one in found] == ["more", "worth"]
    assert len({one.arm.name for one in found}) == 1
    assert sides(made(running("more", HOLDOUT, SHARE)), "ann") == []


def test_the_unit_is_its_own_and_experiments_of_another_unit_are_told_of():
    of = made(trial(replace(SPEC, unit_label="session")))
    assert sides(of, "ann", session="s1") == []
    (text,) = of.warnings("worth")
    assert text == "the unit of trial is another: requests of that experiment are not counted"
    labelled = replace(HOLDOUT, unit_label="session")
    of = made(trial(replace(SPEC, unit_label="session")), spec=labelled)
    (side,) = of.holdouts(request("", session="s1"), "medical", 0.0)
    assert side.unit == unit_hash("s1")
    assert of.warnings("worth") == ()


def test_request_ids_as_units_are_warned_about():
    of = made(trial(replace(SPEC, enrolment=1e-9)))
    of.holdouts(request("req-1", caller_id="req-1"), "medical", 0.0)
    assert "is the id of this request" in of.warnings("worth")[0]


def test_it_runs_but_routes_and_weighs_nothing():
    of = made(trial())
    (one,) = of.snapshot.holdouts
    assert (one.by_router, one.assigns) == (False, False)
    assert [r.name for r in of.snapshot.all()] == ["trial", "worth"]
    assert of.snapshot.routers == ()
    assert bool(made().snapshot)


@pytest.mark.parametrize(
    ("holdout", "arms", "told"),
    [
        (0.0, HOLDOUT.arms, "the server has no holdout: set experiments_holdout"),
        (0.1, HOLDOUT.arms, "the weight of out is 0.3, and the server keeps 0.1 of all units out"),
        (0.3, (*HOLDOUT.arms[:1], ArmSpec("in", 0.4), ArmSpec("also", 0.3)), "not served"),
    ],
    ids=["no holdout", "another share", "three arms"],
)
def test_one_that_does_not_fit_the_server_is_not_served(holdout, arms, told):
    spec = replace(HOLDOUT, arms=arms)
    assert told in holdout_problem(spec, holdout)
    assert running_of(experiment(spec=spec), str, holdout) is None


def test_one_that_fits_has_no_problem_nor_has_any_other():
    assert holdout_problem(HOLDOUT, 0.3) == ""
    assert holdout_problem(HOLDOUT, 0.1 + 0.2) == ""
    assert holdout_problem(SPEC, 0.0) == holdout_problem(ROUTERS, 0.3) == ""


def test_what_is_missing_of_a_route_is_told_as_ever():
    of = made(trial())
    assert isinstance(of.assign(request(""), decision(), 0.0), Outside)
    assert of.assign(request("ann"), decision(AdapterRef("legal", "1.0.0")), 0.0) is None
    assert of.snapshot.split["medical"][0].arms["new"].adapter == NEW
