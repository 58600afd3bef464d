"""What is read by age: the same from both kinds of database."""

from __future__ import annotations

import pytest

from router.experiments.model import Kind, MetricSpec
from tests.experiments.store.helpers import act, experiment, exposed, outcome

SECONDS = MetricSpec("seconds", Kind.MEAN)
CAPPED = MetricSpec("seconds", Kind.MEAN, cap=3.0)


@pytest.fixture
def filled(sql_store):
    store = sql_store
    made = experiment("x", SECONDS)
    kept = store.create(made)
    store.replace(kept, act())
    store.expose([exposed("s", "r1"), exposed("w", "r2", "b", 5.0), exposed("u", "r3", "b")])
    values = (("r1", 1.0, 1.0), ("r1", 5.0, 2.0), ("r2", 7.0, 6.0), ("r3", 2.0, 200.0))
    store.record([outcome(response, "seconds", value, at) for response, value, at in values])
    return store


def test_values_by_age_are_of_units_and_stretches(filled):
    found = filled.values_by_age("x", 1, CAPPED, (100.0, 1000.0))
    assert {key: (one.units, one.mean) for key, one in found.items()} == {
        ("a", 0): (1, 3.0),
        ("b", 0): (1, 3.0),
        ("b", 1): (1, 2.0),
    }
