"""Who takes part and in which arm: ramping reshuffles nobody, and bad allocations are refused."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest

from router.errors import InvalidRequest
from router.experiments.assignment import Allocation, Arm, Assigned, NotAssigned, Reason, Salts

UNITS = [f"user-{i}" for i in range(20_000)]
ARMS = (Arm("control", 0.5), Arm("new", 0.3), Arm("newer", 0.2))
ALLOCATION = Allocation(Salts("enrol", "variant", "space", "hold"), ARMS)


def arms(allocation: Allocation) -> dict[str, str]:
    found = {unit: allocation.assign(unit) for unit in UNITS}
    return {unit: a.arm for unit, a in found.items() if isinstance(a, Assigned)}


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
    before, after = arms(ALLOCATION), arms(replace(ALLOCATION, salts=Salts.fresh()))
    same = sum(before[u] == after[u] for u in UNITS) / len(UNITS)
    assert same == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.02)


def test_experiments_of_one_namespace_share_no_unit():
    left = replace(ALLOCATION, slot=(0.0, 0.5))
    right = replace(left, slot=(0.5, 1.0), salts=replace(left.salts, enrolment="e2", variant="v2"))
    assert not set(arms(left)) & set(arms(right))
    assert set(arms(left)) | set(arms(right)) == set(UNITS)
    outside = next(u for u in UNITS if u not in arms(left))
    assert left.assign(outside) == NotAssigned(Reason.OTHER_EXPERIMENT)


def test_the_holdout_takes_part_in_nothing():
    held = replace(ALLOCATION, holdout=0.05)
    out = [u for u in UNITS if held.assign(u) == NotAssigned(Reason.HOLDOUT)]
    assert len(out) == pytest.approx(1000, abs=4 * 31)
    other = replace(held, salts=replace(held.salts, enrolment="e2", variant="v2", namespace="n2"))
    assert [u for u in UNITS if other.assign(u) == NotAssigned(Reason.HOLDOUT)] == out


@pytest.mark.parametrize("unit", [None, "", "  ", "undefined", "NULL", "[object Object]"])
def test_a_missing_unit_is_never_enrolled(unit):
    assert ALLOCATION.assign(unit) == NotAssigned(Reason.UNIT_MISSING)


def test_who_is_not_enrolled_is_told():
    assert replace(ALLOCATION, enrolment=0.0).assign("user-1") == NotAssigned(Reason.NOT_ENROLLED)


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"arms": (Arm("a", 0.5), Arm("b", 0.4))}, "arms", "sum to 0.9"),
        ({"arms": (Arm("a", 0.5),)}, "arms", "two arms"),
        ({"arms": (Arm("a", 0.5), Arm("a", 0.5))}, "arms", "name of its own"),
        ({"arms": (Arm("a", 1.5), Arm("b", -0.5))}, "arms[1].weight", "-0.5"),
        ({"arms": (Arm("a", float("nan")), Arm("b", 0.5))}, "arms[0].weight", "nan"),
        ({"enrolment": 1.2}, "enrolment", "1.2"),
        ({"holdout": 1.0}, "holdout", "below 1"),
        ({"slot": (0.6, 0.5)}, "slot", "[0.6, 0.5)"),
        ({"salts": Salts("same", "same")}, "salts", "differ"),
        ({"salts": Salts("", "variant")}, "salts.enrolment", "text"),
        ({"salts": Salts("a\x1fb", "variant")}, "salts.enrolment", "U+001F"),
        ({"salts": Salts("e", "v"), "slot": (0.0, 0.5)}, "salts.namespace", "text"),
    ],
)
def test_bad_allocations_are_refused(change, field, text):
    with pytest.raises(InvalidRequest) as caught:
        replace(ALLOCATION, **change)
    assert any(v.field == field and text in v.description for v in caught.value.violations)


def test_assignment_is_cheap():
    busiest = replace(ALLOCATION, holdout=0.01, slot=(0.0, 0.99))
    costs = []
    for _ in range(20):
        begin = time.perf_counter()
        for unit in UNITS[:200]:
            busiest.assign(unit)
        costs.append((time.perf_counter() - begin) / 200)
    assert min(costs) < 50e-6
