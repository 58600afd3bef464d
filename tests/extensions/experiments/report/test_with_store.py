"""A report of rows that a store has really taken in."""

from __future__ import annotations

import random

import pytest

from router.extensions.experiments.model import Accepted, AuditEntry, Experiment, Exposure, StoredOutcome
from router.extensions.experiments.report.build import report
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.report.sums import SPEC, STARTED, running

UNITS = 300


@pytest.fixture
def found():
    """(store, rows): units, each with an arm, whether it was pleased, and the tokens of its one answer."""
    store, dice = MemoryStore(), random.Random(5)
    experiment = store.create(Experiment("medical-v2", SPEC))
    made = running()
    store.replace(
        Experiment("medical-v2", SPEC, made.state, made.phases, etag=experiment.etag),
        AuditEntry("medical-v2", STARTED, "me", "start", ""),
    )
    rows = []
    for _ in range(UNITS):
        arm = ("control", "new")[dice.random() < 0.5]
        pleased = dice.random() < (0.3 if arm == "control" else 0.7)
        rows.append((arm, float(pleased), float(dice.randint(20, 90))))
    store.expose(
        [
            Exposure("medical-v2", 1, f"u{i}", arm, STARTED + i, f"r{i}", arm, "base")
            for i, (arm, _, _) in enumerate(rows)
        ]
    )
    outcomes = [
        StoredOutcome(f"{metric}-{i}", metric, value, STARTED + i + 1, response_id=f"r{i}")
        for i, (_, pleased, tokens) in enumerate(rows)
        for metric, value in (("success", pleased), ("completion_tokens", tokens), ("error", 0.0))
    ]
    assert set(store.record(outcomes)) == {Accepted.COUNTED}
    return store, rows


def test_numbers_are_those_of_the_rows(found):
    store, rows = found
    made = report(store, "medical-v2", now=STARTED + 3 * 86_400)
    for numbers in made.numbers:
        of_arm = [row for row in rows if row[0] == numbers.arm]
        assert numbers.units == numbers.matured == numbers.responses == len(of_arm)
    (arm,) = made.arms
    assert arm.primary is not None
    assert arm.primary.values == tuple(
        sum(r[1] for r in rows if r[0] == a) / sum(r[0] == a for r in rows) for a in ("control", "new")
    )
    assert made.verdict.rule in ("primary-better", "guardrail-open")
    assert [entry.act for entry in made.audit] == ["start"]


def test_young_units_wait(found):
    store, _ = found
    made = report(store, "medical-v2", now=STARTED + 3600)
    assert [n.matured for n in made.numbers] == [0, 0]
    assert made.arms[0].primary is None


@pytest.mark.slow
def test_a_fault_is_remembered_by_the_store(found):
    store, _ = found
    more = [
        Exposure("medical-v2", 1, f"x{i}", "new", STARTED + 9000 + i, f"x{i}", "new", "base")
        for i in range(200)
    ]
    store.expose(more)
    assert report(store, "medical-v2", now=STARTED + 3 * 86_400).verdict.rule == "sample-ratio"
    assert store.data("medical-v2", 1).peak > 6.9
