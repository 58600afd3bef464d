"""A router experiment of a whole server: all is real but the engine."""

from __future__ import annotations

import dataclasses

import pytest

from router.experiments.model import ArmSpec
from router.types import RouterVariant
from tests.commands import own_folder
from tests.experiments.compose.test_modes import SPEC, client, eventually, running, started

__all__ = ["client", "own_folder", "running"]

pytestmark = pytest.mark.slow


async def test_units_are_divided_between_routers(running, client):
    arms = (ArmSpec("control", 0.5), ArmSpec("strict", 0.5, router=RouterVariant(threshold=0.9)))
    store = await started(running, dataclasses.replace(SPEC, route="", arms=arms))
    answered = set()
    for i in range(12):
        decision = (await client.generate("which chapter", max_tokens=2, unit=f"user{i}")).decision
        assert decision.experiment == "trial"
        answered.add((decision.arm, str(decision.adapter)))
    assert answered == {("control", "medical@1.3.0"), ("strict", "None")}
    await running.app.experiments.recorder.flush()
    await eventually(lambda: sum(b.exposed for b in store.data("trial", 1, True).buckets) == 12)
    digests = store.data("trial", 1).digests
    ends = {arm: {one.rpartition("/")[2] for one in found} for arm, found in digests.items()}
    variant = RouterVariant(threshold=0.9)
    assert ends == {"control": {running.router.digest()}, "strict": {running.router.digest(variant)}}
