"""Folders that claim one version: with the same contents fine, else the later one is refused."""

from __future__ import annotations

import shutil

import pytest

from router.errors import AdapterRejected
from tests.registry.cards import hand_in, routed, version
from tests.registry.life import drop, eventually, is_ready, ref, states


@pytest.mark.slow
async def test_duplicates_with_other_contents_are_quarantined(root, start_registry):
    drop(root, "m", "1.0", 1, folder="a")
    drop(root, "m", "1.0", 1, folder="b")
    drop(root, "m", "1.0", 2, folder="c")
    registry = await start_registry()
    await eventually(lambda: states(registry) == {"m@1.0": "ready", "m@1.0+double.1": "quarantined"})
    assert "folder 'c' claims m@1.0, which folder 'a' holds" in registry.get("m", "1.0+double.1").error
    assert registry.resolve("m").ref.version == "1.0"
    with pytest.raises(AdapterRejected, match="other contents"):
        await registry.load(ref("m", "1.0+double.1"))
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")
    await eventually(lambda: states(registry) == {"m@1.0": "ready"})


async def test_one_dir_over_another(root, tmp_path, start_registry):
    second = tmp_path / "second"
    drop(second, "m", value=1)
    drop(second, "n", value=2)
    registry = await start_registry(dirs=[root, second, tmp_path / "missing"])
    assert states(registry) == {"m@0": "ready", "n@0": "ready"}


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """The adapters folder of an installed package."""
    monkeypatch.setattr("router.carried.PACKAGE", tmp_path / "router")
    folder = tmp_path / "router" / "_data" / "adapters"
    folder.mkdir(parents=True)
    return folder


async def test_an_own_adapter_lies_over_a_carried_one_in_any_version(root, carried, start_registry):
    drop(carried, "medical", "2.0", 1)
    drop(carried, "legal", "1.0", 2)
    drop(root, "medical", "1.0", 3)
    registry = await start_registry(dirs=[root, carried])
    await eventually(lambda: states(registry) == {"medical@1.0": "ready", "legal@1.0": "ready"})
    assert {info.ref.name: info.carried for info in registry.listed()} == {"medical": False, "legal": True}


async def test_an_own_adapter_that_comes_and_goes_uncovers_the_carried_one(root, carried, start_registry):
    drop(carried, "medical", "2.0", 1)
    registry = await start_registry(dirs=[root, carried])
    assert states(registry) == {"medical@2.0": "ready"}
    drop(root, "medical", "1.0", 3)
    await eventually(lambda: states(registry) == {"medical@1.0": "ready"})
    shutil.rmtree(root / "medical")
    await eventually(lambda: states(registry) == {"medical@2.0": "ready"})


async def test_an_own_adapter_of_the_same_version_takes_the_place_of_the_carried_one(
    root, carried, start_registry
):
    drop(carried, "medical", "1.0", 1)
    registry = await start_registry(dirs=[root, carried])
    before = registry.get("medical", "1.0").digest
    drop(root, "medical", "1.0", 3)
    await eventually(lambda: registry.get("medical", "1.0").digest not in ("", before))
    assert states(registry) == {"medical@1.0": "ready"}
    assert not registry.get("medical", "1.0").carried


@pytest.mark.parametrize("number", ["1.0", "0.1"])
async def test_an_own_adapter_is_routed_to_at_once_in_place_of_the_carried_one(
    number, root, carried, engine, start_registry
):
    drop(carried, "medical", "1.0", 1, examples=3)
    hand_in(carried / "medical")
    registry = await start_registry(dirs=[root, carried], gate="replacements")
    await eventually(lambda: routed(registry) == ["medical@1.0"])
    before = registry.get("medical").digest
    drop(root, "medical", number, 3, examples=8)
    await eventually(lambda: registry.get("medical").digest not in ("", before))
    await registry.close()
    engine.held.clear()
    again = await start_registry(dirs=[root, carried], gate="replacements")
    for info in (registry.get("medical"), again.get("medical")):
        assert (str(info.ref), info.routable, info.carried) == (f"medical@{number}", True, False)
        assert info.routing == (
            "Routed to: it is the first version of yours, in place of the carried one, and has 8 routing "
            "examples."
        )
        assert info.notes == ("yours, in place of the carried 1.0",)


async def test_a_second_own_version_needs_proof_as_any_other(root, carried, start_registry):
    drop(carried, "m", "3.0", 7, examples=3)
    version(root, "1.0", examples=8)
    registry = await start_registry(dirs=[root, carried], gate="replacements")
    version(root, "1.1", examples=8)
    await eventually(is_ready(registry, "m", "1.1"))
    assert routed(registry) == ["m@1.0"]
    assert "it would replace 1.0" in registry.get("m", "1.1").gate


async def test_an_own_adapter_that_is_refused_does_not_bring_the_carried_one_back(
    root, carried, start_registry
):
    drop(carried, "medical", "1.0", 1)
    (drop(root, "medical", "0.1", 3) / "adapter_model.safetensors").unlink()
    registry = await start_registry(dirs=[root, carried])
    await eventually(lambda: states(registry) == {"medical@0.1": "quarantined"})
