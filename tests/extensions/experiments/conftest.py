"""A manager on a store of dicts, with a clock, salts and adapters that tests turn."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.fake import FakeEngine
from router.extensions.experiments.assignment import AssignmentSalts
from router.extensions.experiments.manager import Manager, Promoter
from router.extensions.experiments.model import Experiment
from router.extensions.experiments.plans import Known
from router.extensions.experiments.report.model import ArmReport, Report, Ruling
from tests.extensions.experiments.memory_store import MemoryStore
from tests.fakes import FakeRegistry, adapter

ME = "127.0.0.1"


class OnThread(FakeRegistry):
    """As threads see the registry: what they call is done when it returns."""

    set_default = FakeRegistry.choose  # type: ignore[assignment]


@pytest.fixture
def bench() -> SimpleNamespace:
    """`manager`, `promoter`, `store`, `registry`; `clock.now` and `verdicts` (arm -> decision)."""
    store, registry = (
        MemoryStore(),
        OnThread(FakeEngine(), [adapter("medical"), adapter("medical", "1.1.0")]),
    )
    clock, numbers = SimpleNamespace(now=1000.0), count(1)
    verdicts: dict[str, str] = {}

    def salts() -> AssignmentSalts:
        number = next(numbers)
        return AssignmentSalts(f"enrolment-{number}", f"variant-{number}")

    def judge(experiment: Experiment) -> Report:
        arms = tuple(_arm(arm.name, verdicts) for arm in experiment.spec.arms[1:])
        best = next((a for a in arms if a.verdict.decision == "promote"), None)
        verdict = (best or arms[0]).verdict
        fields: Any = {"checks": (), "numbers": (), "audit": (), "notes": ()}
        arm = best.arm if best else None
        return Report(experiment, len(experiment.phases), verdict, arm, arms=arms, time=clock.now, **fields)

    manager = Manager(
        store,
        Known(registry.resolve),
        clock=lambda: clock.now,
        salts=salts,
    )
    return SimpleNamespace(
        store=store,
        registry=registry,
        manager=manager,
        promoter=Promoter(manager, registry, judge),
        clock=clock,
        verdicts=verdicts,
    )


def _arm(name: str, verdicts: dict[str, str]) -> ArmReport:
    decision = verdicts.get(name, "undecided")
    return ArmReport(name, Ruling(decision, "primary-open", "p = 0.4"), None)
