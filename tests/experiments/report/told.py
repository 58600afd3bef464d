"""A report with something in every field, for tests of what shows or carries reports."""

from __future__ import annotations

import math
from dataclasses import replace

from router.experiments.model import AuditEntry
from router.experiments.report.build import report
from router.experiments.report.model import Length, MetricReport, Pairs, Report, Ruling
from tests.experiments.report.sums import STARTED, SumsStore, both

NOW = STARTED + 40 * 3600.0
STORE = SumsStore(
    both(1000, 1150, hours=12),
    responses={"control": 3000, "new": 3100},
    built_in={
        "control": {"completion_tokens": 80.0, "time_to_first_token": 0.12, "total_time": 1.0},
        "new": {"completion_tokens": 95.5, "time_to_first_token": 0.125, "total_time": 1.25},
    },
)
TRAIL = (
    AuditEntry("medical-v2", STARTED, "127.0.0.1", "start", "ticket 7", {"phase": 1.0}),
    AuditEntry("medical-v2", STARTED + 60, "rule", "note", "<script>alert(1)</script>", {}),
)


def _whole() -> Report:
    made = report(STORE, "medical-v2", now=NOW)
    (arm,) = made.arms
    assert arm.primary is not None
    length = Length(0.04, 0.03, 80.0, 95.5)
    everyone = MetricReport("success", (1, 2), (0.5, 0.5), 0.0, -math.inf, math.inf, 1.0, "burn-in")
    whole = replace(
        arm,
        primary=replace(arm.primary, length=length),
        blocked=Ruling("promote", "primary-better", "blocked"),
        everyone=everyone,
        pairs=Pairs(30, 10, 5, 0.75, 0.6, 0.9, 0.01),
    )
    return replace(made, arms=(whole,), audit=TRAIL)


REPORT = _whole()
