"""Who is assigned, in which order of decisions, and what never changes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import pytest

from router.errors import InvalidRequest
from router.experiments.assignment import Reason as Why
from router.experiments.assignment import unit_hash
from router.experiments.live.assigner import Assigner, Assignment, Outside, running_of
from router.experiments.model import ArmSpec, Mode
from router.types import AdapterRef, Reason, RouterVariant
from tests.experiments.live.made import NEW, OLD, SPEC, decision, experiment, request, running

UNITS = [f"user-{i}" for i in range(400)]


def assigner(*found) -> Assigner:
    made = Assigner()
    made.use(found)
    return made


def arms(made: Assigner, now: float = 0.0) -> dict[str, str]:
    """Of those units that take part."""
    found = {unit: made.assign(request(unit), decision(), now) for unit in UNITS}
    return {unit: one.arm.name for unit, one in found.items() if isinstance(one, Assignment)}


def test_a_unit_keeps_its_arm_and_both_arms_are_used():
    first, again = arms(assigner(running())), arms(assigner(running()))
    assert first == again
    assert set(first) == set(UNITS)
    assert 150 < Counter(first.values())["new"] < 250


def test_what_an_assignment_says():
    found = assigner(running()).assign(request("ann"), decision(), 0.0)
    assert isinstance(found, Assignment)
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
    assert isinstance(made.assign(request(), decision(None), 0.0), Assignment)
    assert made.assign(request(), decision(OLD), 0.0) is None


def test_a_named_version_never_takes_part_a_named_adapter_does():
    made = assigner(running())
    explicit = decision(OLD, Reason.EXPLICIT)
    assert made.assign(request(adapter="adapters/medical/versions/1.0.0"), explicit, 0.0) is None
    assert isinstance(made.assign(request(adapter="adapters/medical"), explicit, 0.0), Assignment)


@pytest.mark.parametrize("unit", ["", "  ", "null", "undefined"])
def test_a_missing_unit_is_never_enrolled(unit):
    assert assigner(running()).assign(request(unit), decision(), 0.0) == Outside("trial", Why.UNIT_MISSING)


def test_the_unit_may_be_a_label():
    made = assigner(running(spec=replace(SPEC, unit_label="session")))
    found = made.assign(request("", session="s1"), decision(), 0.0)
    assert isinstance(found, Assignment)
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
    names = Counter(one.running.name for one in found.values() if isinstance(one, Assignment))
    assert sum(names.values()) == len(UNITS)
    assert min(names["a"], names["b"]) > 150


def test_bandit_weights_hold_from_their_start_and_are_the_propensity():
    made = assigner(running(spec=replace(SPEC, mode=Mode.BANDIT)))
    made.reweight("trial", 1, 100.0, {"control": 0.1, "new": 0.9})
    assert arms(made, 99.0) == arms(assigner(running()))
    shares = Counter(arms(made, 100.0).values())
    assert shares["new"] > 320
    one = made.assign(request("ann"), decision(), 100.0)
    assert isinstance(one, Assignment)
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
    assert isinstance(made.router(request(), 0.0), Assignment)
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
