"""What there is to see of routing and experiments: a calibration, and a trial that ran for four days."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from router.extensions.experiments.model import (
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    SegmentSpec,
    StoredOutcome,
    Unanswered,
)
from router.routing.calibration import Calibration
from router.routing.state import ClassifierState, RoutingState
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.plans import plan

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
DAY = 86_400.0


def routing() -> RoutingState:
    """With a calibration, an adapter that it does not cover, and a classifier that lost its vote."""
    tested = [
        {
            "threshold": round(0.98 - 0.02 * n, 2),
            "routed": 100 + 20 * n,
            "errors": n // 4,
            "strange_routed": n // 2,
        }
        for n in range(40)
    ]
    shares = {"accuracy": 0.93, "coverage": 0.84, "error": 0.01}
    of = Calibration(
        created="2026-12-02T10:00:00+00:00",
        threshold=tested[23]["threshold"],
        target=0.05,
        strange_target=0.05,
        delta=0.05,
        adapters=("legal", "medical"),
        report={"rows": 900, "strange_rows": 800, "strange_routed": 11, **shares, "tested": tested},
    )
    examples = ClassifierState(
        "examples", "examples", 50, "ready", "closed", 900, 0, findings={"medical": f"medical: {EVIL}"}
    )
    slow = ClassifierState("slow", "slow", 9, "failed", "open", 40, 12, f"raised: {EVIL}")
    return RoutingState(of.threshold, of, ("newcomer",), (examples, slow), (f"plugin {EVIL}",))


def trial(
    store: MemoryStore, name: str = "trial", units: int = 300, rates: tuple[float, float] = (0.55, 0.75)
) -> None:
    """An experiment of medical with so many units in each arm, of whom shares `rates` solved it."""
    draw, now = random.Random(7), time.time()
    spec = plan(
        hypothesis=f"the new version solves more {EVIL}",
        window=3600.0,
        guardrails=(
            MetricSpec(
                "complaint", Kind.PROPORTION, higher_is_better=False, missing=Unanswered.ZERO, margin=0.05
            ),
        ),
        secondary=(MetricSpec("seconds", Kind.MEAN, cap=60.0),),
        segments=(SegmentSpec("plan", ("free", "paid")),),
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
            store.expose([Exposure(name, 1, f"unit-{rid}", arm.name, at, rid, segments=labels)])
            solved = draw.random() < rate
            said = {"solved": float(solved), "seconds": draw.uniform(5, 30)}
            said |= {"complaint": 1.0} if draw.random() < 0.02 else {}
            store.record([StoredOutcome(f"{rid}-{m}", m, v, at + 60, rid) for m, v in said.items()])


def draft(store: MemoryStore, name: str = "a-draft") -> None:
    """One that was not started."""
    store.create(replace(Experiment(name, plan(), created=time.time(), updated=time.time())))
