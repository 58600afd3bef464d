"""A store that hands out given sums, and buckets made from counts: reports of any size without rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from router.experiments.model import ArmSpec, Experiment, ExperimentPhase, Kind, Lifecycle, MetricSpec, Spec
from router.experiments.stats.moments import Moments
from router.experiments.store.series import PairCounts, PhaseData, TimeBucket
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
        triggered: Sequence[TimeBucket] = (),
        pairs: Mapping[str, PairCounts] | None = None,
        **data,
    ) -> None:
        self.experiment = experiment or running()
        whole = {"crossed": 0, "digests": {}, "responses": {}, "peak": 0.0}
        self.found = PhaseData(tuple(buckets), **whole | data)
        self.differing = PhaseData(tuple(triggered), **whole)
        self.counts = pairs or {}
        self.peaks: list[float] = []
        self.acts = ()

    def get(self, name):
        return self.experiment

    def trail(self, name):
        return self.acts

    def data(self, name, phase, only_differing=False):
        return self.differing if only_differing else self.found

    def paired(self, name, phase):
        return self.counts

    def set_peak(self, name, phase, peak):
        self.peaks.append(peak)
