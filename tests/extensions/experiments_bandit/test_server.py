"""A bandit of a whole server: all is real but the engine."""

from __future__ import annotations

import dataclasses
import time

import pytest

from router.experiments.model import Mode
from router.experiments.report.source import REWEIGHT
from tests.commands import own_folder
from tests.experiments.compose.test_modes import SPEC, client, eventually, running, started

__all__ = ["client", "own_folder", "running"]

pytestmark = pytest.mark.slow


async def test_a_bandit_gets_its_epochs_weights(running, client):
    spec = dataclasses.replace(SPEC, mode=Mode.BANDIT, epoch=3600.0)
    store = await started(running, spec, age=5400.0)
    (entry,) = await eventually(lambda: [e for e in store.trail("trial") if e.act == REWEIGHT])
    assert entry.detail["epoch"] == 1
    weights = entry.detail["weights"]
    await eventually(lambda: running.app.experiments.assigner.snapshot.all()[0].epochs)
    answer = await client.generate("which chapter", max_tokens=2, unit="ann")
    await running.app.experiments.recorder.flush()
    (one,) = running.app.experiments.assigner.snapshot.all()
    assert {arm.name: arm.weight for arm in one.at(time.time()).arms} == pytest.approx(weights)
    assert answer.decision.arm in weights
