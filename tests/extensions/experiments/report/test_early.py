"""A broken canary is stopped after minutes of traffic, though outcomes have a week to come."""

import math

import numpy as np
import pytest

from router.extensions.experiments.manager import opened
from router.extensions.experiments.model import (
    ArmSpec,
    Experiment,
    Exposure,
    Kind,
    MetricSpec,
    Spec,
    StoredOutcome,
)
from router.extensions.experiments.report.build import report
from router.extensions.experiments.runtime import act_on
from router.extensions.experiments.store.store import ExperimentStore
from router.types import AdapterRef

DAY, MINUTE = 86_400.0, 60.0
BEGIN = 1_700_000_000.0
A_MINUTE = 30  # new units of both arms
SPEC = Spec(
    hypothesis="a canary",
    route="medical",
    arms=(
        ArmSpec("old", 0.95, AdapterRef("medical", "1.0.0")),
        ArmSpec("new", 0.05, AdapterRef("medical", "1.1.0")),
    ),
    control="old",
    primary=MetricSpec("solved", Kind.PROPORTION),
    guardrails=(
        MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.02),
        MetricSpec("total_time", Kind.MEAN, higher_is_better=False, margin=0.5, relative=True, cap=15.0),
    ),
    window=7 * DAY,
)


@pytest.fixture
def store(tmp_path):
    found = ExperimentStore(f"sqlite:///{tmp_path / 'experiments.db'}")
    found.create(opened(Experiment("canary", SPEC), SPEC, BEGIN, "started"))
    yield found
    found.close()


def stopped(store: ExperimentStore, broken: str, minutes: int = 60) -> tuple[float, float, str]:
    """Minutes and units of both arms until the rule stops the canary, and the metric that did it."""
    rng, units = np.random.default_rng(5), 0
    for minute in range(minutes):
        shown, outcomes = [], []
        for at in np.sort(rng.uniform(0, MINUTE, A_MINUTE)):
            arm, name, now = (
                "new" if rng.random() < 0.05 else "old",
                f"u{units}",
                BEGIN + minute * MINUTE + at,
            )
            units += 1
            ill = arm == "new" and broken
            seconds = rng.lognormal(0, 0.5) * (10 if ill == "latency" else 1)
            error = rng.random() < (0.5 if ill == "errors" else 0.01)
            shown.append(Exposure("canary", 1, name, arm, now, f"r-{name}"))
            for metric, value in (("error", float(error)), ("total_time", seconds)):
                key = f"{metric}-{name}"
                outcomes.append(StoredOutcome(key, metric, value, now + seconds, response_id=f"r-{name}"))
        store.expose(shown)
        store.record(outcomes)
        now = BEGIN + (minute + 1) * MINUTE
        found = act_on(report(store, "canary", now=now, details=False), now)
        if found is not None:
            assert found.entry.act == "stop"
            return minute + 1, units, found.entry.reason
    return math.inf, units, ""


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "metric"), [("errors", "error"), ("latency", "total_time")])
def test_a_broken_canary_is_stopped_in_minutes(store, broken, metric):
    minutes, units, reason = stopped(store, broken)
    assert minutes <= 30
    assert units <= 900
    assert f"new: {metric}: " in reason


@pytest.mark.slow
def test_a_sound_canary_goes_on(store):
    assert stopped(store, "")[0] == math.inf
