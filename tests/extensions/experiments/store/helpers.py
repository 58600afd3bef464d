"""Experiments and events in few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from router.extensions.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
    StoredOutcome,
)
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.store.series import PhaseData
from router.extensions.experiments.store.store import ExperimentStore

GOOD = MetricSpec("good", Kind.PROPORTION)
START, WINDOW = 1_000_000.0, 2400.0  # stretches of 100 seconds
_keys = count()


def experiment(
    name: str = "x", *metrics: MetricSpec, phases: Sequence[float] = (START,), **more: Any
) -> Experiment:
    """A running one whose phases began at these times; without metrics `good` is the only one."""
    primary, *guardrails = metrics or (GOOD,)
    arms = (ArmSpec("a", 0.5), ArmSpec("b", 0.5))
    spec = Spec("h", "medical", arms, "a", primary, tuple(guardrails), **{"window": WINDOW, **more})
    made = tuple(ExperimentPhase(i, started, f"e{i}", f"v{i}", spec) for i, started in enumerate(phases, 1))
    return Experiment(name, spec, Lifecycle.RUNNING, made)


def exposed(
    unit: str, response: str, arm: str = "a", at: float = 0.0, name: str = "x", phase: int = 1, **more: Any
) -> Exposure:
    """At seconds after START."""
    return Exposure(name, phase, unit, arm, START + at, response, **more)


def outcome(
    response: str, metric: str = "good", value: float = 1.0, at: float = 1.0, key: str = "", came: float = 0.0
) -> StoredOutcome:
    """An outcome of a response. `came`: seconds after START, 0: at once."""
    made = StoredOutcome(key or f"key-{next(_keys)}", metric, value, START + at, response_id=response)
    return replace(made, received=START + came if came else 0.0)


def unit_outcome(
    unit: str, metric: str = "good", value: float = 1.0, at: float = 1.0, name: str = "x"
) -> StoredOutcome:
    """An outcome of a unit."""
    return StoredOutcome(f"key-{next(_keys)}", metric, value, START + at, experiment=name, unit=unit)


def with_secondary(found: Experiment, *secondary: MetricSpec) -> Experiment:
    """With secondary metrics in its last phase."""
    spec = replace(found.spec, secondary=secondary)
    last = replace(found.phases[-1], spec=replace(found.phases[-1].spec, secondary=secondary))
    return replace(found, spec=spec, phases=(*found.phases[:-1], last))


def act(name: str = "x", what: str = "update", time: float = 1.0) -> AuditEntry:
    return AuditEntry(name, time, "ipv4:127.0.0.1", what, "because", {"n": 3, "share": 0.5})


def moments(data: PhaseData, metric: str = "good", arm: str = "a") -> Moments:
    """Over all stretches."""
    found = [b.moments[metric] for b in data.buckets if b.arm == arm]
    total = found[0]
    for other in found[1:]:
        total = total.merge(other)
    return total


def row(store: ExperimentStore, metric: str = "good", arm: str = "a", name: str = "x", phase: int = 1):
    """(units, sums) of one arm."""
    found = moments(store.data(name, phase), metric, arm)
    return (found.n, *found.sums)
