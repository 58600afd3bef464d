"""Units and requests get their arms."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.extensions.experiments.assignment import (
    ArmAssignment,
    Assigned,
    Assigner,
    AssignmentSalts,
    NotAssigned,
    NotAssignedReason,
    Outside,
    UnitAllocation,
    WeightedArm,
    fraction,
    holdout_problem,
    never_repeats,
    running_of,
    unit_hash,
)
from router.extensions.experiments.model import ArmSpec, Mode
from router.types import AdapterRef, Reason
from tests.extensions.experiments.made import HOLDOUT, NEW, OLD, SPEC, decision, experiment, request, running

UNITS = [f"user-{i}" for i in range(20_000)]
ARMS = (WeightedArm("control", 0.5), WeightedArm("new", 0.3), WeightedArm("newer", 0.2))
ALLOCATION = UnitAllocation(AssignmentSalts("enrol", "variant", "space", "hold"), ARMS)


def arms(allocation: UnitAllocation) -> dict[str, str]:
    found = {unit: allocation.assign(unit) for unit in UNITS}
    return {unit: a.arm for unit, a in found.items() if isinstance(a, Assigned)}


@pytest.mark.slow
def test_arms_get_their_shares_and_propensities():
    counts = Counter(arms(ALLOCATION).values())
    for arm in ARMS:
        assert counts[arm.name] == pytest.approx(20_000 * arm.weight, abs=4 * 71)
    found = ALLOCATION.assign("user-1")
    assert isinstance(found, Assigned)
    assert found.propensity == {a.name: a.weight for a in ARMS}[found.arm]


def test_ramping_keeps_everybody_where_they_are():
    small, large = (arms(replace(ALLOCATION, enrolment=share)) for share in (0.1, 0.4))
    assert 1800 < len(small) < 2200
    assert 7700 < len(large) < 8300
    assert small.items() <= large.items()


def test_enrolment_tells_nothing_of_the_arm():
    counts = Counter(arms(replace(ALLOCATION, enrolment=0.2)).values())
    assert counts["control"] / counts.total() == pytest.approx(0.5, abs=4 * 0.0079)


def test_new_salts_reshuffle():
    before, after = arms(ALLOCATION), arms(replace(ALLOCATION, salts=AssignmentSalts.fresh()))
    same = sum(before[u] == after[u] for u in UNITS) / len(UNITS)
    assert same == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.02)


@pytest.mark.slow
def test_experiments_of_one_namespace_share_no_unit():
    left = replace(ALLOCATION, slot=(0.0, 0.5))
    right = replace(left, slot=(0.5, 1.0), salts=replace(left.salts, enrolment="e2", variant="v2"))
    assert not set(arms(left)) & set(arms(right))
    assert set(arms(left)) | set(arms(right)) == set(UNITS)
    outside = next(u for u in UNITS if u not in arms(left))
    assert left.assign(outside) == NotAssigned(NotAssignedReason.OTHER_EXPERIMENT)


def test_the_holdout_takes_part_in_nothing():
    held = replace(ALLOCATION, holdout=0.05)
    out = [u for u in UNITS if held.assign(u) == NotAssigned(NotAssignedReason.HOLDOUT)]
    assert len(out) == pytest.approx(1000, abs=4 * 31)
    other = replace(held, salts=replace(held.salts, enrolment="e2", variant="v2", namespace="n2"))
    assert [u for u in UNITS if other.assign(u) == NotAssigned(NotAssignedReason.HOLDOUT)] == out


@pytest.mark.parametrize("unit", [None, "", "  ", "undefined", "NULL", "[object Object]"])
def test_a_missing_unit_is_never_enrolled(unit):
    assert ALLOCATION.assign(unit) == NotAssigned(NotAssignedReason.UNIT_MISSING)


def test_who_is_not_enrolled_is_told():
    assert replace(ALLOCATION, enrolment=0.0).assign("user-1") == NotAssigned(NotAssignedReason.NOT_ENROLLED)


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"arms": (WeightedArm("a", 0.5), WeightedArm("b", 0.4))}, "arms", "sum to 0.9"),
        ({"arms": (WeightedArm("a", 0.5),)}, "arms", "two arms"),
        ({"arms": (WeightedArm("a", 0.5), WeightedArm("a", 0.5))}, "arms", "name of its own"),
        ({"arms": (WeightedArm("a", 1.5), WeightedArm("b", -0.5))}, "arms[1].weight", "-0.5"),
        ({"arms": (WeightedArm("a", float("nan")), WeightedArm("b", 0.5))}, "arms[0].weight", "nan"),
        ({"enrolment": 1.2}, "enrolment", "1.2"),
        ({"holdout": 1.0}, "holdout", "below 1"),
        ({"slot": (0.6, 0.5)}, "slot", "[0.6, 0.5)"),
        ({"salts": AssignmentSalts("same", "same")}, "salts", "differ"),
        ({"salts": AssignmentSalts("", "variant")}, "salts.enrolment", "text"),
        ({"salts": AssignmentSalts("a\x1fb", "variant")}, "salts.enrolment", "U+001F"),
        ({"salts": AssignmentSalts("e", "v"), "slot": (0.0, 0.5)}, "salts.namespace", "text"),
    ],
)
def test_bad_allocations_are_refused(change, field, text):
    with pytest.raises(InvalidRequest) as caught:
        replace(ALLOCATION, **change)
    assert any(v.field == field and text in v.description for v in caught.value.violations)


VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "assignment-vectors.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS["fractions"], ids=lambda v: repr(v["unit"])[:20])
def test_the_published_fractions_hold(vector):
    assert fraction(vector["salt"], vector["unit"]) == vector["fraction"]
    digest = hashlib.sha256(vector["salt"].encode() + b"\x1f" + vector["unit"].encode()).hexdigest()
    assert digest == vector["sha256"]
    assert int(digest[:16], 16) // 2**11 * 2.0**-53 == vector["fraction"]


@pytest.mark.parametrize("case", VECTORS["assignments"], ids=lambda c: c["name"])
def test_the_published_assignments_hold(case):
    given = case["allocation"]
    allocation = UnitAllocation(
        AssignmentSalts(**given["salts"]),
        tuple(WeightedArm(a["name"], a["weight"]) for a in given["arms"]),
        given["enrolment"],
        tuple(given["slot"]),
        given["holdout"],
    )
    got = {unit: allocation.assign(unit) for unit in case["units"]}
    told = {u: a.arm if isinstance(a, Assigned) else f"({a.reason})" for u, a in got.items()}
    assert told == case["units"]


@given(st.text(), st.text(min_size=1))
def test_always_in_range(salt, unit):
    assert 0 <= fraction(salt, unit) < 1


def test_units_that_never_repeat():
    assert never_repeats(2000, 1995)
    assert not never_repeats(2000, 900)
    assert not never_repeats(500, 500)


PEOPLE = [f"user-{i}" for i in range(400)]


def assigner(*found) -> Assigner:
    made = Assigner()
    made.use(found)
    return made


def arms_of(made: Assigner) -> dict[str, str]:
    """Of those units that take part."""
    found = {unit: made.assign(request(unit), decision()) for unit in PEOPLE}
    return {unit: one.arm.name for unit, one in found.items() if isinstance(one, ArmAssignment)}


def test_a_unit_keeps_its_arm_and_both_arms_are_used():
    first, again = arms_of(assigner(running())), arms_of(assigner(running()))
    assert first == again
    assert set(first) == set(PEOPLE)
    assert 150 < Counter(first.values())["new"] < 250


def test_what_an_assignment_says():
    found = assigner(running()).assign(request("ann"), decision())
    assert isinstance(found, ArmAssignment)
    assert found.unit == unit_hash("ann")
    assert found.propensity == 0.5
    assert found.arm.adapter in (OLD, NEW)
    assert (found.running.name, found.running.phase) == ("trial", 1)


def test_only_its_route_takes_part():
    made = assigner(running())
    assert made.assign(request(), decision(AdapterRef("legal", "1.0.0"))) is None
    assert made.assign(request(), decision(None)) is None


def test_a_route_of_the_base():
    spec = replace(SPEC, route="base", arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5, NEW)))
    made = assigner(running(spec=spec))
    assert isinstance(made.assign(request(), decision(None)), ArmAssignment)
    assert made.assign(request(), decision(OLD)) is None


def test_a_named_version_never_takes_part_a_named_adapter_does():
    made = assigner(running())
    explicit = decision(OLD, Reason.EXPLICIT)
    assert made.assign(request(adapter="adapters/medical/versions/1.0.0"), explicit) is None
    assert isinstance(made.assign(request(adapter="adapters/medical"), explicit), ArmAssignment)


@pytest.mark.parametrize("unit", ["", "null"])
def test_a_request_without_a_unit_has_no_arm(unit):
    assert assigner(running()).assign(request(unit), decision()) == Outside(
        "trial", NotAssignedReason.UNIT_MISSING
    )


def test_the_unit_may_be_a_label():
    made = assigner(running(spec=replace(SPEC, unit_label="session")))
    found = made.assign(request("", session="s1"), decision())
    assert isinstance(found, ArmAssignment)
    assert found.unit == unit_hash("s1")
    assert isinstance(made.assign(request("ann"), decision()), Outside)


def test_each_half_of_a_namespace_has_its_experiment():
    halves = [replace(SPEC, namespace="users", slot=slot) for slot in ((0.0, 0.5), (0.5, 1.0))]
    made = assigner(*(running(name, spec) for name, spec in zip("ab", halves, strict=True)))
    found = {unit: made.assign(request(unit), decision()) for unit in PEOPLE}
    names = Counter(one.running.name for one in found.values() if isinstance(one, ArmAssignment))
    assert sum(names.values()) == len(PEOPLE)
    assert min(names["a"], names["b"]) > 150


def test_shadow_experiments_assign_nobody():
    made = assigner(running(spec=replace(SPEC, mode=Mode.SHADOW)))
    assert made.assign(request(), decision()) is None
    assert [one.name for one in made.snapshot.shadows["medical"]] == ["trial"]


def test_request_ids_are_warned_about_once(caplog):
    made = assigner(running())
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            made.assign(request(f"req-{number}", caller_id=f"req-{number}"), decision())
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
    made, requests, costs = assigner(running(spec=spec, holdout=0.01), *others), map(request, PEOPLE), []
    for asked in requests:
        begin = time.process_time_ns()
        made.assign(asked, decision())
        costs.append(time.process_time_ns() - begin)
    assert median(costs) < 50_000


def test_an_experiment_that_cannot_be_assigned_by_is_left_out(caplog):
    bad = experiment(spec=replace(SPEC, arms=SPEC.arms[:1]))
    assert running_of(bad, str, 0.0) is None
    assert "trial is not served" in caplog.text


SHARE = 0.3


def made(*others, spec=HOLDOUT) -> Assigner:
    """With an experiment on a holdout of 0.3, and these."""
    found = Assigner()
    found.use([running("worth", spec, SHARE), *others])
    return found


def trial(spec=SPEC, name: str = "trial"):
    return running(name, spec, SHARE)


def sides(of: Assigner, *args, route: str = "medical", **fields) -> list[str]:
    return [one.arm.name for one in of.holdouts(request(*args, **fields), route)]


def test_a_unit_of_the_holdout_is_control_and_no_other_is():
    of = made(trial())
    for unit in PEOPLE:
        (side,) = of.holdouts(request(unit), "medical")
        held = fraction("salt-holdout", unit) < SHARE
        assert (side.arm.name, side.propensity) == (("out", SHARE) if held else ("in", 1 - SHARE))
        assert (side.unit, side.running.name, side.running.phase) == (unit_hash(unit), "worth", 1)
        assert isinstance(of.assign(request(unit), decision()), ArmAssignment) is not held


def test_serving_is_as_without_it():
    alone = Assigner()
    alone.use([trial()])
    beside = made(trial())
    for unit in PEOPLE:
        first, second = (one.assign(request(unit), decision()) for one in (alone, beside))
        assert getattr(first, "arm", None) == getattr(second, "arm", None)


def test_enrolment_and_namespace_make_no_difference():
    spec = replace(SPEC, enrolment=0.01, namespace="users", slot=(0.0, 0.1))
    of = made(trial(spec))
    assert sum(isinstance(of.assign(request(u), decision()), ArmAssignment) for u in PEOPLE) < 10
    assert all(len(sides(of, unit)) == 1 for unit in PEOPLE)


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
    assert made(trial()).holdouts(asked, route) == ()


def test_it_is_for_splits_and_not_for_shadows():
    assert sides(made(), "ann") == []
    assert sides(made(trial(replace(SPEC, mode=Mode.SHADOW))), "ann") == []


def test_two_of_them_are_both_exposed_and_one_is_no_reason_for_the_other():
    of = made(running("more", HOLDOUT, SHARE), trial())
    found = of.holdouts(request("ann"), "medical")
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
    (side,) = of.holdouts(request("", session="s1"), "medical")
    assert side.unit == unit_hash("s1")
    assert of.warnings("worth") == ()


@pytest.mark.parametrize(
    ("holdout", "arms", "told"),
    [
        (0.0, HOLDOUT.arms, "the server has no holdout: set experiments.holdout"),
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
    assert holdout_problem(SPEC, 0.0) == holdout_problem(SPEC, 0.3) == ""
