"""Experiments and requests for the tests of what runs."""

from __future__ import annotations

from dataclasses import replace

from router.extensions.experiments.assignment import RunningExperiment, running_of
from router.extensions.experiments.model import (
    Aggregate,
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    Spec,
    StoredOutcome,
    Unanswered,
)
from router.types import AdapterRef, Decision, Reason, Request, RoutingHints, Turn

OLD, NEW = AdapterRef("medical", "1.0.0"), AdapterRef("medical", "1.1.0")
SUCCESS = MetricSpec("success", Kind.PROPORTION, aggregate=Aggregate.MAX, missing=Unanswered.EXCLUDED)
SPEC = Spec(
    hypothesis="version 1.1.0 helps more users",
    route="medical",
    arms=(ArmSpec("control", 0.5, OLD), ArmSpec("new", 0.5, NEW)),
    control="control",
    primary=SUCCESS,
)
HOLDOUT = Spec(
    hypothesis="experiments help more users",
    route="",
    arms=(ArmSpec("out", 0.3), ArmSpec("in", 0.7)),
    control="out",
    primary=SUCCESS,
    mode=Mode.HOLDOUT,
)


def experiment(name: str = "trial", spec: Spec = SPEC, phase: int = 1, **fields) -> Experiment:
    """Running."""
    phases = tuple(
        ExperimentPhase(n, 1000.0 * n, f"{name}-e{n}", f"{name}-v{n}", spec) for n in range(1, phase + 1)
    )
    return replace(Experiment(name, spec, Lifecycle.RUNNING, phases), **fields)


def running(
    name: str = "trial", spec: Spec = SPEC, holdout: float = 0.0, phase: int = 1
) -> RunningExperiment:
    found = running_of(experiment(name, spec, phase), lambda purpose: f"salt-{purpose}", holdout)
    assert found is not None
    return found


def request(
    unit: str = "ann", adapter: str = "", request_id: str = "r1", caller_id: str = "", **labels: str
) -> Request:
    hints = RoutingHints(adapter=adapter, unit=unit)
    turns = (Turn("user", "what is gout"),)
    return Request(request_id, turns=turns, routing=hints, labels=labels, caller_id=caller_id)


def decision(ref: AdapterRef | None = OLD, reason: Reason = Reason.CLASSIFIED) -> Decision:
    return Decision(ref, reason, confidence=0.9)


def exposure(number: int = 0, experiment: str = "trial", arm: str = "new") -> Exposure:
    return Exposure(experiment, 1, f"unit{number}", arm, 1000.0 + number, f"response{number}")


def outcome(number: int = 0, value: float = 1.0, key: str = "") -> StoredOutcome:
    key = key or f"key{number}"
    return StoredOutcome(key, "success", value, 1100.0, response_id=f"response{number}")
