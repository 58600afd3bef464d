"""The gate over a life: what is routed to by itself, what only by name, and the reason given."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from router.errors import GateNotPassed
from router.ports import Force
from router.registry import reconcile
from router.registry.format.untrusted import REPORT_BYTES
from tests.registry.cards import card, hand_in, routed, version, worse
from tests.registry.life import drop, eventually, is_ready, ref, states

pytestmark = pytest.mark.slow


async def test_a_folder_without_a_report_answers_by_name_only(root, start_registry, caplog):
    caplog.set_level("INFO")
    drop(root, "plain")
    registry = await start_registry(gate="strict")
    info = registry.resolve("plain")
    assert (info.state, info.default, info.routable) == ("ready", True, False)
    assert info.gate == "not routed to by itself: no report.json"
    assert info.gate_advice == (
        "run `lora-router adapters evaluate adapters/plain` (`lora-router adapters new plain --data FILE` "
        "makes a recipe where it has none), or overrule with `lora-router adapters default plain@0 --force`"
    )
    assert routed(registry) == []
    async with registry.lease(ref("plain")) as lease:
        assert lease.digest == info.digest
    assert [m for m in caplog.messages if "routed" in m] == [
        "adapter plain@0 is not routed to by itself: no report.json"
    ]


async def test_a_report_that_comes_later_counts_at_once_and_reloads_nothing(
    root, engine, start_registry, caplog
):
    caplog.set_level("INFO")
    folder = version(root, "1.0")
    registry = await start_registry(gate="strict")
    told = list[int]()
    registry.subscribe(lambda: told.append(len(registry.profiles())))
    etag, loads = registry.etag(ref("m", "1.0")), list(engine.loads)
    hand_in(folder, gain=0.01)
    await eventually(lambda: "does not exclude zero" in registry.get("m").gate)
    assert (routed(registry), told) == ([], [])
    assert registry.get("m").gate_advice.startswith("overrule with `lora-router adapters default m@1.0")
    hand_in(folder)
    await eventually(lambda: routed(registry) == ["m@1.0"])
    assert (registry.get("m").gate, registry.get("m").routable) == ("", True)
    (folder / "report.json").unlink()
    await eventually(lambda: routed(registry) == [])
    await eventually(lambda: told == [1, 0])  # subscribers are called in a later turn of the loop
    assert engine.loads == loads
    assert registry.etag(ref("m", "1.0")) != etag
    gain = "0.3 (95 % interval 0.25 to 0.35)"
    passed = f"adapter m@1.0 passes the gate: its report shows a gain over the base of {gain}"
    assert caplog.messages.count(passed) == 1


async def test_a_higher_version_that_fails_is_ready_but_takes_nothing_over(root, start_registry):
    version(root, "1.0", gain=0.3)
    registry = await start_registry(gate="strict")
    assert routed(registry) == ["m@1.0"]
    newer = version(root, "1.1", gain=0.3, regressions=[worse()])
    await eventually(is_ready(registry, "m", "1.1"))
    assert (registry.resolve("m").ref, routed(registry)) == (ref("m", "1.0"), ["m@1.0"])
    assert "worse than the base beyond the margin: 'loss on legal rows'" in registry.get("m", "1.1").gate
    async with registry.lease(ref("m", "1.1")) as lease:
        assert lease.ref == ref("m", "1.1")  # by name, and for experiments
    hand_in(newer)
    await eventually(lambda: routed(registry) == ["m@1.1"])
    assert (registry.resolve("m").ref, registry.get("m", "1.0").gate) == (ref("m", "1.1"), "")


async def test_a_lower_version_that_passes_takes_over_from_a_default_that_does_not(root, start_registry):
    old = version(root, "1.0")
    version(root, "1.1")
    registry = await start_registry(gate="strict")
    assert (registry.resolve("m").ref.version, routed(registry)) == ("1.1", [])
    hand_in(old)
    await eventually(lambda: routed(registry) == ["m@1.0"])
    assert registry.resolve("m").ref.version == "1.0"
    shutil.rmtree(old)
    await eventually(lambda: registry.resolve("m").ref.version == "1.1")
    assert routed(registry) == []


async def test_a_version_surely_worse_than_the_default_does_not_replace_it(root, start_registry):
    version(root, "1.0", score=0.9)
    registry = await start_registry(gate="strict")
    newer = version(root, "1.1", score=0.7)
    await eventually(is_ready(registry, "m", "1.1"))
    assert routed(registry) == ["m@1.0"]
    said = registry.get("m", "1.1")
    assert said.gate.endswith(
        "its exact match, 0.7 (95 % interval 0.65 to 0.75), is below that of 1.0 on the same test data, "
        "0.9 (95 % interval 0.85 to 0.95), with intervals that lie apart"
    )
    assert said.gate_advice.startswith("overrule")
    hand_in(newer, score=0.85)
    await eventually(lambda: routed(registry) == ["m@1.1"])


async def test_without_preload_a_report_counts_before_the_first_load(root, engine, start_registry):
    version(root, "1.0", gain=0.3)
    hand_in(drop(root, "copy", value=2), weights_sha256="0f" * 32)
    registry = await start_registry(gate="strict", preload=False)
    assert (engine.loads, routed(registry)) == ([], ["m@1.0"])
    assert states(registry) == {"copy@0": "discovered", "m@1.0": "discovered"}
    assert "about other weights: sha256 0f0f0f0f0f0f" in registry.get("copy").gate


async def test_weights_and_report_replaced_together_are_routed_to_all_the_time(root, engine, start_registry):
    folder = version(root, "1.0", gain=0.3)
    registry = await start_registry(gate="strict")
    told = list[int]()
    registry.subscribe(lambda: told.append(len(registry.profiles())))
    before = registry.get("m").digest
    engine.loading.clear()  # the new files take their time
    version(root, "1.0", gain=0.3).touch()
    drop(root, "m", "1.0", 7.0, folder="m/1.0")
    hand_in(folder, gain=0.4)
    await eventually(lambda: len(engine.loads) == 2)
    assert routed(registry) == ["m@1.0"]
    engine.loading.set()
    await eventually(lambda: registry.get("m").digest != before)
    assert (routed(registry), registry.get("m").gate) == (["m@1.0"], "")
    assert told == []


async def test_new_weights_under_an_old_report_are_not_routed_to(root, start_registry):
    version(root, "1.0", gain=0.3)
    registry = await start_registry(gate="strict")
    drop(root, "m", "1.0", 7.0, folder="m/1.0")
    await eventually(lambda: routed(registry) == [])
    assert "about other weights" in registry.get("m").gate
    assert registry.get("m").state == "ready"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_text('{"schema": 2'), "report.json: not JSON: "),
        (lambda file: file.write_bytes(b"x" * (REPORT_BYTES + 1)), "at most 1048576 are allowed"),
        (lambda file: file.symlink_to("/etc/passwd"), "is a symbolic link; copy the file itself"),
        (lambda file: os.mkfifo(file), "is not a regular file"),
        (lambda file: file.mkdir(), "is not a regular file"),
        (lambda file: file.write_text("[" * 70_000), "has 70000 parts"),
        (lambda file: file.write_text('{"schema": 2}'), "adapter.weights_sha256 is missing"),
        (
            lambda file: file.write_text(json.dumps({k: v for k, v in card().items() if k != "regressions"})),
            "regressions is missing",
        ),
    ],
)
async def test_a_bad_report_costs_the_routing_only(root, start_registry, spoil, said):
    folder = drop(root, "m")
    spoil(folder / "report.json")
    good = drop(root, "good", value=2)
    hand_in(good)
    registry = await start_registry(gate="strict")
    assert states(registry) == {"good@0": "ready", "m@0": "ready"}
    assert said in registry.get("m").gate
    assert routed(registry) == ["good@0"]


async def test_off_lets_everything_through(root, start_registry):
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    registry = await start_registry(gate="off")
    assert routed(registry) == ["m@1.1"]
    assert (registry.get("m").routable, registry.get("m").gate) == (True, "")


# -- hashes of weights, which a report is compared with


@pytest.fixture
def hashed(monkeypatch):
    """Folders whose weights were read for their hash."""
    read, real = list[Path](), reconcile.weights_sha256

    def counting(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(reconcile, "weights_sha256", counting)
    return read


async def test_weights_are_read_once_and_not_again_after_a_restart(root, start_registry, hashed, tmp_path):
    folder = version(root, "1.0", gain=0.3)
    for _ in range(2):
        registry = await start_registry(gate="strict", preload=False)
        assert routed(registry) == ["m@1.0"]
        await registry.close()
    assert hashed == [folder]
    (lock,) = tmp_path.glob("state/registry/*/weights")
    lock.write_text(lock.read_text()[:-3])  # damaged
    assert routed(await start_registry(gate="strict", preload=False)) == ["m@1.0"]
    assert len(hashed) == 2


async def test_weights_without_a_report_are_not_read_for_it(root, start_registry, hashed):
    version(root, "1.0")
    registry = await start_registry(gate="strict", preload=False)
    assert "no report.json" in registry.get("m").gate
    assert hashed == []


async def test_weights_that_change_while_they_are_hashed_say_nothing(root, start_registry, monkeypatch):
    version(root, "1.0", gain=0.3)
    real, changed = reconcile.weights_sha256, list[str]()

    def meanwhile(path: Path) -> str:
        sha = real(path)
        if not changed:
            changed.append(sha)
            drop(root, "m", "1.0", 7.0, folder="m/1.0")
        return sha

    monkeypatch.setattr(reconcile, "weights_sha256", meanwhile)
    registry = await start_registry(gate="strict", preload=False)
    await eventually(lambda: bool(registry.list()))
    assert "about other weights" in registry.get("m").gate


# -- the gate as it is by default: the first version of a name needs no report, one that replaces it does


WON = Force("experiments/trial", "arm new: +4.6 points", won=True)


async def test_a_first_version_with_examples_is_routed_to_at_once(root, start_registry, caplog):
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


async def test_with_keywords_and_without_examples_a_report_helps(root, start_registry):
    folder = version(root, "1.0")
    with (folder / "adapter.toml").open("a") as file:
        file.write('\n[routing]\nkeywords = ["bike"]\n')
    registry = await start_registry(gate="replacements")
    advice = registry.get("m").gate_advice
    assert advice.startswith("write 6 to 12 requests for it as [routing] examples into adapters/")
    assert ", or run `lora-router adapters evaluate adapters/" in advice


async def test_without_examples_it_answers_by_name_and_says_what_is_missing(root, start_registry):
    drop(root, "plain")
    registry = await start_registry(gate="replacements")
    info = registry.get("plain")
    assert (routed(registry), info.state) == ([], "ready")
    assert info.routing == "Not routed to: its adapter.toml has no [routing] examples."
    assert info.gate_advice == (
        "write 6 to 12 requests for it as [routing] examples into adapters/plain/adapter.toml"
    )
    assert registry.why_none() == (
        "None of the 1 adapters here is routed to; plain@0 is not routed to by itself: its adapter.toml has "
        "no [routing] examples. `lora-router adapters show plain` says what to do."
    )
    drop(root, "plain", "0", examples=6)
    await eventually(lambda: routed(registry) == ["plain@0"])


async def test_a_version_that_would_replace_it_needs_a_report(root, start_registry):
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


async def test_a_won_experiment_is_proof_enough(root, engine, start_registry):
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


async def test_strict_takes_no_experiment_for_proof(root, start_registry):
    version(root, "1.0", examples=8, gain=0.3)
    version(root, "1.1", examples=8)
    registry = await start_registry(gate="strict")
    assert routed(registry) == ["m@1.0"]
    with pytest.raises(GateNotPassed):
        await registry.set_default(ref("m", "1.1"), force=WON)


async def test_a_report_that_shows_no_gain_keeps_a_first_version_out(root, start_registry):
    version(root, "1.0", examples=8, gain=0.01)
    registry = await start_registry(gate="replacements")
    assert routed(registry) == []
    assert "does not exclude zero" in registry.get("m").routing


async def test_a_lower_version_that_comes_later_is_not_the_first_one(root, engine, start_registry):
    version(root, "2.0", examples=8)
    registry = await start_registry(gate="replacements")
    version(root, "1.0", examples=8)
    await eventually(lambda: any("replace 2.0" in info.gate for info in registry.list()))
    assert routed(registry) == ["m@2.0"]
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate="replacements")
    assert routed(again) == ["m@2.0"]


async def test_the_next_version_is_the_first_one_where_the_first_is_gone(root, start_registry):
    first = version(root, "1.0", examples=8)
    version(root, "1.1", examples=8)
    registry = await start_registry(gate="replacements")
    assert routed(registry) == ["m@1.0"]
    shutil.rmtree(first)
    await eventually(lambda: routed(registry) == ["m@1.1"])


async def test_a_chosen_version_without_examples_says_that_no_classifier_can_pick_it(root, start_registry):
    version(root, "1.0")
    registry = await start_registry(gate="replacements")
    await registry.set_default(ref("m", "1.0"), force=Force("me"))
    assert registry.get("m").routing == (
        "Open (me overruled the gate), but no classifier can pick it: "
        "adapter.toml has no [routing] examples and no description."
    )
