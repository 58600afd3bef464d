"""The gate as it is by default: the first version of a name needs no report, one that replaces it does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from router.errors import GateNotPassed
from router.ports import Force
from tests.registry.cards import hand_in, routed, version
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, is_ready, ref

pytestmark = pytest.mark.slow
WON = Force("experiments/trial", "arm new: +4.6 points", won=True)


async def test_a_first_version_with_examples_is_routed_to_at_once(
    root: Path, start_registry: StartRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    registry = await start_registry(gate="replacements")
    assert registry.why_none().startswith("There is no adapter here")
    version(root, "1.0", examples=8)
    await eventually(lambda: routed(registry) == ["m@1.0"])
    info = registry.get("m")
    reason = "it is the first version of this adapter, and has 8 routing examples"
    assert (info.routable, info.gate, info.routing) == (True, "", f"Routed to: {reason}.")
    assert f"adapter m@1.0 passes the gate: {reason}" in caplog.messages
    assert registry.why_none() == ""


async def test_without_examples_it_answers_by_name_and_says_what_is_missing(
    root: Path, start_registry: StartRegistry
) -> None:
    drop(root, "plain")
    registry = await start_registry(gate="replacements")
    info = registry.get("plain")
    assert (routed(registry), info.state) == ([], "ready")
    assert info.routing == "Not routed to: its adapter.toml has no [routing] examples."
    assert info.gate_advice.startswith(
        "write 6 to 12 example requests there, or run `lora-router adapters evaluate"
    )
    assert registry.why_none() == (
        "None of the 1 adapters here is routed to; plain@0 is not routed to by itself: its adapter.toml has "
        "no [routing] examples. `lora-router adapters show plain` says what to do."
    )
    drop(root, "plain", "0", examples=6)
    await eventually(lambda: routed(registry) == ["plain@0"])


async def test_a_version_that_would_replace_it_needs_a_report(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0", examples=8)
    registry = await start_registry(gate="replacements")
    newer = version(root, "1.1", examples=8)
    await eventually(is_ready(registry, "m", "1.1"))
    assert (registry.resolve("m").ref, routed(registry)) == (ref("m", "1.0"), ["m@1.0"])
    assert registry.get("m", "1.1").gate == (
        "not routed to by itself: it would replace 1.0, which is routed to, without proof: no report.json"
    )
    with pytest.raises(GateNotPassed, match="without proof"):
        await registry.set_default(ref("m", "1.1"))
    hand_in(newer)
    await eventually(lambda: routed(registry) == ["m@1.1"])
    (newer / "report.json").unlink()
    await eventually(lambda: routed(registry) == ["m@1.0"])


async def test_a_won_experiment_is_proof_enough(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    version(root, "1.0", examples=8)
    version(root, "1.1", examples=8)
    registry = await start_registry(gate="replacements")
    await registry.set_default(ref("m", "1.1"), force=WON)
    assert routed(registry) == ["m@1.1"]
    assert registry.get("m").routing == "Routed to: it won experiments/trial."
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate="replacements")
    assert routed(again) == ["m@1.1"]
    await again.set_default(ref("m", "1.0"))
    assert (routed(again), again.get("m", "1.0").override) == (["m@1.0"], None)


async def test_strict_takes_no_experiment_for_proof(root: Path, start_registry: StartRegistry) -> None:
    version(root, "1.0", examples=8, gain=0.3)
    version(root, "1.1", examples=8)
    registry = await start_registry(gate="strict")
    assert routed(registry) == ["m@1.0"]
    with pytest.raises(GateNotPassed):
        await registry.set_default(ref("m", "1.1"), force=WON)


async def test_a_report_that_shows_no_gain_keeps_a_first_version_out(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0", examples=8, gain=0.01)
    registry = await start_registry(gate="replacements")
    assert routed(registry) == []
    assert "does not exclude zero" in registry.get("m").routing


async def test_a_lower_version_that_comes_later_is_not_the_first_one(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    version(root, "2.0", examples=8)
    registry = await start_registry(gate="replacements")
    version(root, "1.0", examples=8)
    await eventually(lambda: any("replace 2.0" in info.gate for info in registry.list()))
    assert routed(registry) == ["m@2.0"]
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate="replacements")
    assert routed(again) == ["m@2.0"]


async def test_the_next_version_is_the_first_one_where_the_first_is_gone(
    root: Path, start_registry: StartRegistry
) -> None:
    first = version(root, "1.0", examples=8)
    version(root, "1.1", examples=8)
    registry = await start_registry(gate="replacements")
    assert routed(registry) == ["m@1.0"]
    shutil.rmtree(first)
    await eventually(lambda: routed(registry) == ["m@1.1"])


async def test_a_chosen_version_without_examples_says_that_no_classifier_can_pick_it(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0")
    registry = await start_registry(gate="replacements")
    await registry.set_default(ref("m", "1.0"), force=Force("me"))
    assert registry.get("m").routing == (
        "Open (me overruled the gate), but no classifier can pick it: adapter.toml has no [routing] examples."
    )
