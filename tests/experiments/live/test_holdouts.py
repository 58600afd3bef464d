"""Experiments on the holdout: whom they expose, to which side, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from router.experiments.assignment import fraction, unit_hash
from router.experiments.live.assigner import (
    Assigner,
    Assignment,
    Outside,
    holdout_problem,
    running_of,
)
from router.experiments.model import ArmSpec, Mode
from router.types import AdapterRef, RouterVariant
from tests.experiments.live.made import HOLDOUT, NEW, SPEC, decision, experiment, request, running

SHARE = 0.3
UNITS = [f"user-{i}" for i in range(400)]
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
        assert isinstance(of.assign(request(unit), decision(), 0.0), Assignment) is not held


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
    assert sum(isinstance(of.assign(request(u), decision(), 0.0), Assignment) for u in UNITS) < 10
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
