"""Operators who overrule the gate, and going back, which is never harder than the way forward was."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from router.errors import AdapterNotFound, GateNotPassed
from router.extensions.experiments.manager import Manager, Promoter
from router.extensions.experiments.model import ArmSpec, Experiment
from router.extensions.experiments.plans import Known
from router.extensions.experiments.report.model import ArmReport, Report, Ruling
from router.extensions.experiments.service import RegistryOnLoop
from router.ports import Force
from router.types import Override
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.plans import plan
from tests.registry.cards import hand_in, routed, version, weights_of
from tests.registry.life import drop, eventually, is_ready, ref

pytestmark = pytest.mark.slow

ME = Force("127.0.0.1", "measured by hand")


def book(tmp_path: Path) -> list[tuple[str, str, str]]:
    (file,) = tmp_path.glob("state/registry/*/overrides.jsonl")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [(e["action"], e["adapter"], e["override"]["version"]) for e in entries]


async def test_a_version_that_failed_needs_force_and_the_error_says_what_was_found(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    registry = await start_registry(gate="strict")
    with pytest.raises(
        GateNotPassed, match=r"did not pass the gate: no report\.json; run `lora-router"
    ) as caught:
        await registry.set_default(ref("m", "1.1"))
    assert caught.value.metadata["finding"] == "no report.json"
    assert routed(registry) == ["m@1.0"]
    info, _ = await registry.set_default(ref("m", "1.0"), force=ME)
    assert info.override is None  # nothing to overrule


async def test_an_override_is_recorded_routed_to_and_survives_a_restart(
    root, engine, start_registry, tmp_path
):
    version(root, "1.0", gain=0.3)
    folder = version(root, "1.1")
    registry = await start_registry(gate="strict")
    info, previous = await registry.set_default(ref("m", "1.1"), force=ME)
    assert (info.routable, info.gate, previous) == (True, "", ref("m", "1.0"))
    made = info.override
    assert made == Override("1.1", "127.0.0.1", pytest.approx(time.time(), abs=5), "measured by hand",
                            "no report.json", weights_of(folder))  # fmt: skip
    assert routed(registry) == ["m@1.1"]
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate="strict")
    assert (routed(again), again.get("m").override) == (["m@1.1"], made)
    info, _ = await again.set_default(ref("m", "1.1"))  # said again without force: no change
    assert info.override == made
    await again.set_default(ref("m", "1.0"))
    assert (routed(again), again.get("m", "1.1").override) == (["m@1.0"], None)
    assert "no report.json" in again.get("m", "1.1").gate
    assert book(tmp_path) == [("overruled", "m", "1.1"), ("no longer overruled", "m", "1.1")]


async def test_taking_it_back_lets_the_rule_decide(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    registry = await start_registry(gate="strict")
    await registry.set_default(ref("m", "1.1"), force=ME)
    info, previous = await registry.reset_default("m")
    assert (info.ref, info.routable, previous) == (ref("m", "1.0"), True, ref("m", "1.1"))
    again, _ = await registry.reset_default("m")  # nothing left to take back
    assert again.ref == ref("m", "1.0")
    version(root, "1.2", gain=0.4)
    await eventually(lambda: routed(registry) == ["m@1.2"])
    with pytest.raises(AdapterNotFound, match="did you mean 'm'"):
        await registry.reset_default("mm")


async def test_the_first_version_can_be_forced_where_it_is(root, start_registry):
    drop(root, "m")
    registry = await start_registry(gate="strict")
    etag = registry.etag(ref("m"))
    info, previous = await registry.set_default(ref("m"), etag, ME)
    assert (info.routable, previous, routed(registry)) == (True, ref("m"), ["m@0"])
    assert registry.etag(ref("m")) != etag


async def test_an_override_is_about_the_weights_it_was_made_for(root, start_registry):
    folder = version(root, "1.0")
    registry = await start_registry(gate="strict")
    await registry.set_default(ref("m", "1.0"), force=ME)
    drop(root, "m", "1.0", 7.0, folder="m/1.0")
    await eventually(lambda: routed(registry) == [])
    assert registry.get("m").gate.endswith("no report.json; it was overruled for other weights")
    assert registry.get("m").override is not None
    await registry.set_default(ref("m", "1.0"), force=ME)
    assert (routed(registry), registry.get("m").override.weights_sha256) == (["m@1.0"], weights_of(folder))  # type: ignore[union-attr]


async def test_forced_before_the_weights_were_read(root, engine, start_registry):
    folder = version(root, "1.0")
    registry = await start_registry(gate="strict", preload=False)
    info, _ = await registry.set_default(ref("m", "1.0"), force=ME)
    assert (info.routable, routed(registry)) == (True, ["m@1.0"])  # they were read for that
    assert registry.get("m").override.weights_sha256 == weights_of(folder)  # type: ignore[union-attr]
    assert engine.loads == []


async def test_a_forced_version_that_passes_later_needs_no_override(root, start_registry):
    folder = version(root, "1.0")
    registry = await start_registry(gate="strict")
    await registry.set_default(ref("m", "1.0"), force=ME)
    hand_in(folder)
    etag = registry.etag(ref("m", "1.0"))
    await eventually(lambda: registry.etag(ref("m", "1.0")) != etag)
    assert registry.get("m").override is not None
    info, _ = await registry.reset_default("m")
    assert (info.override, info.routable) == (None, True)


async def test_without_force_a_choice_does_not_outlive_its_report(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1", gain=0.3)
    registry = await start_registry(gate="strict")
    await registry.set_default(ref("m", "1.0"))
    await eventually(is_ready(registry, "m", "1.0"))
    (root / "m/1.0/report.json").unlink()
    await eventually(lambda: routed(registry) == [])
    assert registry.resolve("m").ref.version == "1.0"  # what was chosen is not replaced in silence


async def test_back_from_a_version_that_did_not_pass_either(root, start_registry, tmp_path):
    version(root, "1.0")
    registry = await start_registry(gate="strict")
    await eventually(is_ready(registry, "m", "1.0"))
    version(root, "2.0")
    await eventually(lambda: registry.resolve("m").ref.version == "2.0")  # by itself
    info, previous = await registry.set_default(ref("m", "1.0"))
    assert (info.default, previous) == (True, ref("m", "2.0"))
    assert (info.routable, info.override, routed(registry)) == (False, None, [])  # no more than it was
    assert book(tmp_path) == [("not overruled: went back", "m", "1.0")]


async def test_back_to_what_was_the_default_before_also_after_a_restart(
    root, engine, start_registry, tmp_path
):
    folder = version(root, "1.0")
    registry = await start_registry(gate="strict")
    await registry.set_default(ref("m", "1.0"), force=Force("me", "by hand"))
    hand_in(version(root, "1.1"))
    await eventually(lambda: {"m@1.1": ""}.items() <= {str(i.ref): i.gate for i in registry.list()}.items())
    await registry.set_default(ref("m", "1.1"))
    assert routed(registry) == ["m@1.1"]
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate="strict")
    info, _ = await again.set_default(ref("m", "1.0"))
    await eventually(lambda: routed(again) == ["m@1.0"])  # as it was, once its weights were compared
    assert info.override is not None
    assert info.override.weights_sha256 == weights_of(folder)
    assert (info.override.by, info.override.reason) == (
        "the rule for going back",
        "it was the default before",
    )
    assert book(tmp_path)[-1] == ("overruled", "m", "1.0")


async def test_other_weights_are_another_version(root, start_registry):
    version(root, "1.0")
    registry = await start_registry(gate="strict")
    await eventually(is_ready(registry, "m", "1.0"))
    hand_in(version(root, "1.1"))
    await eventually(lambda: routed(registry) == ["m@1.1"])
    drop(root, "m", "1.0", 7.0, folder="m/1.0")
    before = registry.get("m", "1.0").digest
    await eventually(lambda: registry.get("m", "1.0").digest not in ("", before))
    with pytest.raises(GateNotPassed):
        await registry.set_default(ref("m", "1.0"))


async def test_what_stood_in_while_others_were_judged_was_no_default(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1", weights_sha256="00" * 32)
    registry = await start_registry(gate="strict")
    await eventually(lambda: routed(registry) == ["m@1.0"])
    with pytest.raises(GateNotPassed, match="other weights"):
        await registry.set_default(ref("m", "1.1"))


# -- an experiment's arm becomes the default of a real registry, called from a thread, and goes back


OPERATOR = "127.0.0.1"


def better(experiment: Experiment) -> Report:
    ruling = Ruling("promote", "primary-better", "p = 0.001")
    return Report(experiment, 1, ruling, "new", (ArmReport("new", ruling, None),), (), (), (), (), (), 0.0)


async def test_a_verdict_does_not_overrule_the_strict_gate_but_force_does(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    registry = await start_registry(gate="strict")
    remote = RegistryOnLoop(registry, asyncio.get_running_loop())
    manager = Manager(MemoryStore(), Known(remote.resolve))
    promoter = Promoter(manager, remote, better)
    arms = (ArmSpec("old", 0.5, ref("m", "1.0")), ArmSpec("new", 0.5, ref("m", "1.1")))
    await asyncio.to_thread(manager.create, "trial", plan(route="m", arms=arms), OPERATOR)
    await asyncio.to_thread(manager.start, "trial", "", OPERATOR)
    with pytest.raises(GateNotPassed, match="no report"):
        await asyncio.to_thread(promoter.promote, "trial", "", "", OPERATOR)
    assert routed(registry) == ["m@1.0"]
    done = await asyncio.to_thread(promoter.promote, "trial", "", "", OPERATOR, force=True, reason="ticket 7")
    assert (done.default, done.previous, routed(registry)) == (ref("m", "1.1"), ref("m", "1.0"), ["m@1.1"])
    override = registry.get("m").override
    assert override is not None
    assert (override.by, override.reason) == (OPERATOR, "experiments/trial, arm new: ticket 7")
    await asyncio.to_thread(promoter.roll_back, "trial", "", OPERATOR)
    assert routed(registry) == ["m@1.0"]
    assert registry.get("m").override is None
