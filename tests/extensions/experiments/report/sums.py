"""A store of given sums, and a report with something in every field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router.extensions.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
)
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.model import Report
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.store.series import PhaseData, TimeBucket
from router.types import AdapterRef

STARTED = 1_000_000.0
DAY = 86_400.0
SUCCESS = MetricSpec("success", Kind.PROPORTION)
ERROR = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.03)
SPEC = Spec(
    hypothesis="version 1.1.0 helps more users",
    route="medical",
    arms=(
        ArmSpec("control", 0.5, AdapterRef("medical", "1.0.0")),
        ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0")),
    ),
    control="control",
    primary=SUCCESS,
    guardrails=(ERROR,),
    planned_units=4000,
    window=DAY,
)
LONG_AFTER = STARTED + 1000 * DAY


def running(spec: Spec = SPEC, name: str = "medical-v2") -> Experiment:
    phase = ExperimentPhase(1, STARTED, "enrolment-salt", "variant-salt", spec)
    return Experiment(name, spec, Lifecycle.RUNNING, (phase,), etag="etag-1")


def ones(count: int, units: int) -> Moments:
    return Moments(units, (float(count),), (float(count),))


def bucket(arm: str, units: int, successes: int, errors: int = 0, at: int = 0, **fields) -> TimeBucket:
    """All units of it answered; `at`: which hour."""
    made = TimeBucket(
        arm,
        STARTED + 3600.0 * at,
        3600.0,
        exposed=units,
        degraded=0,
        answered={"success": units, "error": units},
        moments={"success": ones(successes, units), "error": ones(errors, units)},
    )
    return replace(made, **fields)


def both(control: int, new: int, units: int = 2000, hours: int = 1, **fields) -> list[TimeBucket]:
    """Successes of both arms, spread evenly over hours."""
    made = []
    for hour in range(hours):
        for arm, successes in (("control", control), ("new", new)):
            n, s = (_part(whole, hour, hours) for whole in (units, successes))
            made.append(bucket(arm, n, s, round(0.02 * n), at=hour, **fields))
    return made


def _part(whole: int, hour: int, hours: int) -> int:
    return whole * (hour + 1) // hours - whole * hour // hours


class SumsStore:
    """As much of a store as a report reads."""

    def __init__(
        self,
        buckets: Sequence[TimeBucket],
        experiment: Experiment | None = None,
        **data,
    ) -> None:
        self.experiment = experiment or running()
        whole = {"crossed": 0, "digests": {}, "responses": {}, "peak": 0.0}
        self.found = PhaseData(tuple(buckets), **whole | data)
        self.peaks: list[float] = []
        self.acts = ()

    def get(self, name):
        return self.experiment

    def trail(self, name):
        return self.acts

    def data(self, name, phase):
        return self.found

    def set_peak(self, name, phase, peak):
        self.peaks.append(peak)


NOW = STARTED + 40 * 3600.0
STORE = SumsStore(both(1000, 1150, hours=12), responses={"control": 3000, "new": 3100})
TRAIL = (
    AuditEntry("medical-v2", STARTED, "127.0.0.1", "start", "ticket 7", {"phase": 1.0}),
    AuditEntry("medical-v2", STARTED + 60, "rule", "note", "<script>alert(1)</script>", {}),
)


def _whole() -> Report:
    made = report(STORE, "medical-v2", now=NOW)
    return replace(made, audit=TRAIL, notes=("not counted: 2 outcomes that came too late",))


REPORT = _whole()
