"""The number a unit hashes to: as published, uniform, and independent between salts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.experiments.assignment import Allocation, Arm, Assigned, Salts, fraction

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
    allocation = Allocation(
        Salts(**given["salts"]),
        tuple(Arm(a["name"], a["weight"]) for a in given["arms"]),
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
