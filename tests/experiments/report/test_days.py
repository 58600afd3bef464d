"""The effect by days since a unit's first exposure, from a store that took in its outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.experiments import report_tables
from router.experiments.messages import experiment_message
from router.experiments.model import AuditEntry, Experiment, Exposure, Kind, MetricSpec, StoredOutcome
from router.experiments.report.build import report
from router.experiments.report_messages import report_message, report_of
from router.experiments.store.store import ExperimentStore
from tests.experiments.report.sums import SPEC, STARTED, running

DAY = 86_400.0
AGES = (0.1, 1.5, 5.0, 5.5, 9.0)


@pytest.fixture
def fading(tmp_path):
    """A report of 80 units whose new arm is better on the first day only; its seconds are capped at 3."""
    spec = replace(SPEC, primary=MetricSpec("seconds", Kind.MEAN, cap=3.0), guardrails=(), window=8 * DAY)
    store = ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    made = running(spec)
    kept = store.create(Experiment("medical-v2", spec))
    store.replace(replace(made, etag=kept.etag), AuditEntry("medical-v2", STARTED, "me", "start", ""))
    arms = [("control", "new")[i % 2] for i in range(80)]
    store.expose(
        [
            Exposure("medical-v2", 1, f"u{i}", arm, STARTED + 60 * i, f"r{i}", 0.5, arm, "base")
            for i, arm in enumerate(arms)
        ]
    )
    store.record(
        [
            StoredOutcome(
                f"{i}-{age}",
                "seconds",
                (2.0 if arm == "new" and age < 1 else 1.0) + (9.0 if i == 0 and age > 8 else i % 3 / 10),
                STARTED + 60 * i + age * DAY,
                response_id=f"r{i}",
            )
            for i, arm in enumerate(arms)
            for age in AGES
        ]
    )
    yield report(store, "medical-v2", now=STARTED + 20 * DAY)
    store.close()


def test_an_effect_that_wears_off_is_seen_by_days(fading):
    days = fading.arms[0].days
    assert list(days) == ["day 0", "day 1", "days 4 to 7", "day 8 on"]
    assert all(row.units == (40, 40) and not row.anytime for row in days.values())
    assert days["day 0"].low < 1.0 < days["day 0"].high
    assert days["day 0"].low > 0.9
    assert days["day 1"].low < 0 < days["day 1"].high
    assert days["day 8 on"].values[0] == pytest.approx(days["day 1"].values[0] + (3.0 - 1.0) / 40, abs=0.01)
    (table,) = report_tables.days(fading)
    assert [row[0] for row in table.rows] == list(days)
    again = report_of(report_message(fading, experiment_message(fading.experiment)))
    assert again.arms == fading.arms
