"""A switchback of a whole server: all is real but the engine."""

from __future__ import annotations

import dataclasses
import time

import pytest

from router.experiments.model import Mode
from router.experiments.plugin import QUEUE_FILE, queue_of
from router.experiments.slices import SlicePart, arm_at, part_at
from tests.commands import own_folder
from tests.experiments.compose.test_modes import SPEC, client, running, started

__all__ = ["client", "own_folder", "running"]

pytestmark = pytest.mark.slow
HOUR = 3600.0


async def test_all_requests_of_a_slice_have_its_arm_and_are_its_unit(running, client):
    spec = dataclasses.replace(
        SPEC, mode=Mode.SWITCHBACK, slice_length=HOUR, window=2 * HOUR, planned_slices=20
    )
    store = await started(running, spec, age=2.4 * HOUR)
    live = running.app.experiments
    (one,) = live.assigner.snapshot.all()
    assert live.assigner.server == queue_of(running.app.settings, running.app.state_dir)
    assert (running.app.state_dir / QUEUE_FILE).read_text() == live.assigner.server
    expected = arm_at(one.allocation.salts.variant, live.assigner.server, 2, tuple(one.arms))
    for unit in ("ann", "ben", ""):
        answer = await client.generate("which chapter", max_tokens=2, unit=unit)
        assert answer.decision.arm == expected
    await live.recorder.flush()
    data = store.data("trial", 1)
    assert {bucket.arm: bucket.exposed for bucket in data.buckets} == {expected: 1}
    found = live.reported("trial")
    assert (found.verdict.decision, found.verdict.rule) == ("undecided", "too-few-units")
    part = part_at(spec, "s", time.time() - one.started)
    assert SlicePart.parsed(str(part)).number == 2
