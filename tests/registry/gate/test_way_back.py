"""Going back is never harder than the way forward was, and is on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.errors import GateNotPassed
from router.ports import Force
from router.registry.state import MOST_SERVED, Choices, Served
from tests.registry.conftest import StartRegistry
from tests.registry.gate.cards import hand_in, weights_of
from tests.registry.gate.test_gate import routed, version
from tests.registry.gate.test_overrides import book
from tests.registry.life import StubEngine, drop, eventually, is_ready, ref


async def test_back_from_a_version_that_did_not_pass_either(
    root: Path, start_registry: StartRegistry, tmp_path: Path
) -> None:
    version(root, "1.0")
    registry = await start_registry(gate=True)
    await eventually(is_ready(registry, "m", "1.0"))
    version(root, "2.0")
    await eventually(lambda: registry.resolve("m").ref.version == "2.0")  # by itself
    info, previous = await registry.set_default(ref("m", "1.0"))
    assert (info.default, previous) == (True, ref("m", "2.0"))
    assert (info.routable, info.override, routed(registry)) == (False, None, [])  # no more than it was
    assert book(tmp_path) == [("not overruled: went back", "m", "1.0")]


async def test_no_version_that_did_not_pass_takes_over_from_one_that_did(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    version(root, "1.2")
    registry = await start_registry(gate=True)
    for other in ("1.1", "1.2"):
        with pytest.raises(GateNotPassed):
            await registry.set_default(ref("m", other))


async def test_back_to_what_was_the_default_before_also_after_a_restart(
    root: Path, engine: StubEngine, start_registry: StartRegistry, tmp_path: Path
) -> None:
    folder = version(root, "1.0")
    registry = await start_registry(gate=True)
    await registry.set_default(ref("m", "1.0"), force=Force("me", "by hand"))
    hand_in(version(root, "1.1"))
    await eventually(lambda: {"m@1.1": ""}.items() <= {str(i.ref): i.gate for i in registry.list()}.items())
    await registry.set_default(ref("m", "1.1"))
    assert routed(registry) == ["m@1.1"]
    await registry.close()
    engine.held.clear()
    again = await start_registry(gate=True)
    info, _ = await again.set_default(ref("m", "1.0"))
    await eventually(lambda: routed(again) == ["m@1.0"])  # as it was, once its weights were compared
    assert info.override is not None
    assert info.override.weights_sha256 == weights_of(folder)
    assert (info.override.by, info.override.reason) == (
        "the rule for going back",
        "it was the default before",
    )
    assert book(tmp_path)[-1] == ("overruled", "m", "1.0")


async def test_other_weights_are_another_version(root: Path, start_registry: StartRegistry) -> None:
    version(root, "1.0")
    registry = await start_registry(gate=True)
    await eventually(is_ready(registry, "m", "1.0"))
    hand_in(version(root, "1.1"))
    await eventually(lambda: routed(registry) == ["m@1.1"])
    drop(root, "m", "1.0", 7.0, folder="m/1.0")
    before = registry.get("m", "1.0").digest
    await eventually(lambda: registry.get("m", "1.0").digest not in ("", before))
    with pytest.raises(GateNotPassed):
        await registry.set_default(ref("m", "1.0"))


async def test_what_stood_in_while_others_were_judged_was_no_default(
    root: Path, start_registry: StartRegistry
) -> None:
    version(root, "1.0", gain=0.3)
    version(root, "1.1", weights_sha256="00" * 32)
    registry = await start_registry(gate=True)
    await eventually(lambda: routed(registry) == ["m@1.0"])
    with pytest.raises(GateNotPassed, match="other weights"):
        await registry.set_default(ref("m", "1.1"))


def test_what_was_the_default_survives_and_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choices = Choices(tmp_path, [])
    for number in range(MOST_SERVED + 2):
        choices.replaced("m", str(number), Served("ab", number % 2 == 0))
    assert choices.unsaved
    choices.write(choices.document())
    again = Choices(tmp_path, [])
    again.read()
    assert again.served("m", "1") is None
    assert again.served("m", "2") == Served("ab", True)
    assert again.served("other", "2") is None
    document = json.loads((tmp_path / "defaults.json").read_text())
    document["served"]["m"]["2"] = {"weights_sha256": 3, "routed": True}
    (tmp_path / "defaults.json").write_text(json.dumps(document))
    damaged = Choices(tmp_path, [])
    damaged.read()
    assert damaged.served("m", "3") is None
    assert "an earlier default is damaged" in caplog.text
