"""What there is to see of routing and experiments: a calibration, and a trial that ran for four days."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path

from router.experiments.model import (
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    SegmentSpec,
    StoredOutcome,
)
from router.routing.state import CalibrationState, ClassifierState, DecisionShare, RoutingState
from tests.experiments.memory_store import MemoryStore
from tests.experiments.plans import plan

ROOT = Path(__file__).parents[3]
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
DAY = 86_400.0


def routing() -> RoutingState:
    """As with the project's own calibration, a classifier that lost its vote, and a share that moved."""
    said = json.loads((ROOT / "adapters" / "calibration.json").read_text())
    fitted = CalibrationState(
        said["created"],
        said["threshold"],
        said["novelty_limit"],
        said["target"],
        said["ood_target"],
        said["delta"],
        tuple(said["binding"]["adapters"]),
        tuple(said["binding"]["classifiers"]),
        (f"adapter {EVIL} changed",),
        ("newcomer",),
        said["report"],
    )
    classifiers = [
        ClassifierState(name, name, i, "ready", "closed", 900, 0) for i, name in enumerate(fitted.order)
    ]
    classifiers.append(ClassifierState("slow", "slow", 9, "failed", "open", 40, 12, f"raised: {EVIL}"))
    shares = [
        DecisionShare("abstained", 0.31, 0.18, 0.16, True),
        DecisionShare("unfamiliar", 0.02, 0.0145, 0.03),
    ]
    shares += [DecisionShare(f"adapters/{name}", 0.09, None, 0.11) for name in fitted.adapters]
    return RoutingState("stale", tuple(classifiers), (f"plugin {EVIL}",), fitted, 1000, tuple(shares))


def trial(
    store: MemoryStore, name: str = "trial", units: int = 300, rates: tuple[float, float] = (0.55, 0.75)
) -> None:
    """An experiment of medical with so many units in each arm, of whom shares `rates` solved it."""
    draw, now = random.Random(7), time.time()
    spec = plan(
        hypothesis=f"the new version solves more {EVIL}",
        window=3600.0,
        guardrails=(
            MetricSpec("complaint", Kind.PROPORTION, higher_is_better=False, missing="zero", margin=0.05),
        ),
        secondary=(MetricSpec("seconds", Kind.MEAN, cap=60.0),),
        segments=(SegmentSpec("plan"),),
        planned_units=600,
    )
    began = now - 4 * DAY
    phase = ExperimentPhase(1, began, "salt-e", "salt-v", spec, reason="started")
    one = Experiment(name, spec, state=Lifecycle.RUNNING, phases=(phase,), created=began, updated=began)
    store.create(one)
    for act, reason in (("create", spec.hypothesis), ("start", "started")):
        store.audit(AuditEntry(name, began, "ipv4:127.0.0.1", act, reason, {"phase": 1}))
    for arm, rate in zip(spec.arms, rates, strict=True):
        for number in range(units):
            at = began + (number + draw.random()) / units * 3.8 * DAY
            rid = f"{name}-{arm.name}-{number}"
            labels = {"plan": draw.choice(("free", "paid"))}
            store.expose([Exposure(name, 1, f"unit-{rid}", arm.name, at, rid, 0.5, segments=labels)])
            solved = draw.random() < rate
            said = {"solved": float(solved), "seconds": draw.uniform(5, 30)}
            said |= {"complaint": 1.0} if draw.random() < 0.02 else {}
            store.record([StoredOutcome(f"{rid}-{m}", m, v, at + 60, rid) for m, v in said.items()])


def draft(store: MemoryStore, name: str = "a-draft") -> None:
    """One that was not started."""
    store.create(replace(Experiment(name, plan(), created=time.time(), updated=time.time())))
