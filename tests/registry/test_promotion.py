"""An experiment's arm becomes the default of a real registry, called from a thread, and goes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.errors import GateNotPassed
from router.experiments.manager import Manager, Promoter
from router.experiments.model import ArmSpec, Experiment
from router.experiments.plans import Known
from router.experiments.report.model import ArmReport, Report, Ruling
from router.experiments.service import RegistryOnLoop
from tests.experiments.memory_store import MemoryStore
from tests.experiments.plans import plan
from tests.registry.cards import routed, version
from tests.registry.conftest import StartRegistry
from tests.registry.life import ref

ME = "127.0.0.1"


def better(experiment: Experiment) -> Report:
    ruling = Ruling("promote", "primary-better", "p = 0.001")
    return Report(experiment, 1, ruling, "new", (ArmReport("new", ruling, None),), (), (), (), (), (), 0.0)


async def test_a_verdict_does_not_overrule_the_strict_gate_but_force_does(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    registry = await start_registry(gate="strict")
    remote = RegistryOnLoop(registry, asyncio.get_running_loop())
    manager = Manager(MemoryStore(), Known(remote.resolve))
    promoter = Promoter(manager, remote, better)
    arms = (ArmSpec("old", 0.5, ref("m", "1.0")), ArmSpec("new", 0.5, ref("m", "1.1")))
    await asyncio.to_thread(manager.create, "trial", plan(route="m", arms=arms), ME)
    await asyncio.to_thread(manager.start, "trial", "", ME)
    with pytest.raises(GateNotPassed, match="no report"):
        await asyncio.to_thread(promoter.promote, "trial", "", "", ME)
    assert routed(registry) == ["m@1.0"]
    done = await asyncio.to_thread(promoter.promote, "trial", "", "", ME, force=True, reason="ticket 7")
    assert (done.default, done.previous, routed(registry)) == (ref("m", "1.1"), ref("m", "1.0"), ["m@1.1"])
    override = registry.get("m").override
    assert override is not None
    assert (override.by, override.reason) == (ME, "experiments/trial, arm new: ticket 7")
    await asyncio.to_thread(promoter.roll_back, "trial", "", ME)
    assert routed(registry) == ["m@1.0"]
    assert registry.get("m").override is None
