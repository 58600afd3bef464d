"""Who gets which arm: shares, hashes, and what is no unit."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.experiments.assignment import (
    Assigned,
    AssignmentSalts,
    NotAssigned,
    NotAssignedReason,
    UnitAllocation,
    WeightedArm,
    fraction,
    is_missing,
    never_repeats,
    request_id_like,
)

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


def test_assignment_is_cheap():
    busiest = replace(ALLOCATION, holdout=0.01, slot=(0.0, 0.99))
    costs = []
    for _ in range(20):
        begin = time.perf_counter()
        for unit in UNITS[:200]:
            busiest.assign(unit)
        costs.append((time.perf_counter() - begin) / 200)
    assert min(costs) < 50e-6


VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "assignment-vectors.json").read_text("utf-8"))


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


def test_uniform_and_independent_between_salts():
    values = np.array([[fraction(salt, f"user-{i}") for i in range(20_000)] for salt in ("a", "b")])
    for row in values:
        counts = np.histogram(row, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45.3  # chi-square, 19 degrees, 0.9994
    assert abs(np.corrcoef(values)[0, 1]) < 4 / np.sqrt(20_000)


NOW = 1_700_000_000.0
UUID7 = f"{int(NOW * 1e3):012x}"
UUID7 = f"{UUID7[:8]}-{UUID7[8:]}-7abc-8def-0123456789ab"
ULID = "01HF7YAT00" + "ABCDEFGHJKMNPQRS"


@pytest.mark.parametrize(
    "unit",
    [
        "req-abc123",
        "chatcmpl-9xYz",
        "trace:77",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        UUID7,
        UUID7.replace("-", ""),
        ULID,
        "1700000000123",
    ],
)
def test_what_looks_like_a_request_id(unit):
    assert request_id_like(unit, now=NOW)


@pytest.mark.parametrize(
    "unit", ["user-17", "alice@example.org", "request", "4711", str(uuid.UUID(int=77, version=4)), "naïve"]
)
def test_what_does_not(unit):
    assert request_id_like(unit, request_id="another", now=NOW) is None


def test_an_id_that_carries_an_old_time_may_be_a_users():
    assert request_id_like(UUID7, now=NOW + 86_400) is None
    assert request_id_like(ULID, now=NOW + 86_400) is None


def test_a_uuid_of_version_1_carries_its_time():
    made = uuid.uuid1()
    assert request_id_like(str(made), now=(made.time - 0x01B21DD213814000) / 1e7)
    assert request_id_like(str(made), now=0.0) is None


def test_the_id_of_the_request_itself():
    assert request_id_like("anything", request_id="anything") == "is the id of this request"


def test_units_that_never_repeat():
    assert never_repeats(2000, 1995)
    assert not never_repeats(2000, 900)
    assert not never_repeats(500, 500)


def test_words_for_nothing():
    assert is_missing(" None ")
    assert not is_missing("nonesuch")
