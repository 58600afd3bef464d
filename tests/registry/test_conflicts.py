"""Folders that claim one version: the later one is refused."""

from __future__ import annotations

import shutil

import pytest

from tests.registry.cards import hand_in, routed, version
from tests.registry.life import drop, eventually, is_ready, states


@pytest.mark.slow
async def test_the_later_of_two_folders_is_ignored_and_told_until_it_is_alone(root, start_registry):
    drop(root, "m", "1.0", 1, folder="a")
    drop(root, "m", "1.0", 2, folder="c")
    registry = await start_registry()
    await eventually(lambda: "folder 'c' claims m@1.0, which folder 'a' holds" in registry.get("m").error)
    assert states(registry) == {"m@1.0": "ready"}
    first = registry.get("m").digest
    shutil.rmtree(root / "a")
    await eventually(lambda: registry.get("m").error == "")
    await eventually(lambda: registry.get("m").digest not in ("", first))


@pytest.mark.slow
async def test_of_two_folders_a_good_one_stands_for_the_version(root, start_registry):
    (drop(root, "m", "1.0", 1, folder="m/1.0") / "adapter_config.json").write_text("{")
    drop(root, "m", "1.0", 2, folder="z")
    registry = await start_registry()
    await eventually(is_ready(registry, "m", "1.0"))


async def test_one_dir_over_another(root, tmp_path, start_registry):
    second = tmp_path / "second"
    drop(second, "m", value=1)
    drop(second, "n", value=2)
    registry = await start_registry(dirs=[root, second, tmp_path / "missing"])
    assert states(registry) == {"m@0": "ready", "n@0": "ready"}


@pytest.fixture
def built_in(tmp_path, monkeypatch):
    """The adapters folder of an installed package."""
    monkeypatch.setattr("router.built_in.PACKAGE", tmp_path / "router")
    folder = tmp_path / "router" / "_data" / "adapters"
    folder.mkdir(parents=True)
    return folder


async def test_a_folder_overrides_the_built_in_one_of_its_name(root, built_in, start_registry):
    drop(built_in, "medical", "2.0", 1)
    drop(built_in, "legal", "1.0", 2)
    drop(root, "medical", "1.0", 3)
    registry = await start_registry(dirs=[root, built_in])
    await eventually(lambda: states(registry) == {"medical@1.0": "ready", "legal@1.0": "ready"})
    assert {info.ref.name: info.built_in for info in registry.listed()} == {"medical": False, "legal": True}


async def test_without_its_override_the_built_in_folder_is_back(root, built_in, start_registry):
    drop(built_in, "medical", "2.0", 1)
    registry = await start_registry(dirs=[root, built_in])
    assert states(registry) == {"medical@2.0": "ready"}
    drop(root, "medical", "1.0", 3)
    await eventually(lambda: states(registry) == {"medical@1.0": "ready"})
    shutil.rmtree(root / "medical")
    await eventually(lambda: states(registry) == {"medical@2.0": "ready"})


@pytest.mark.parametrize("number", ["1.0", "0.1"])
async def test_an_override_is_routed_to_without_proof(number, root, built_in, engine, start_registry):
    drop(built_in, "medical", "1.0", 1, examples=3)
    hand_in(built_in / "medical")
    registry = await start_registry(dirs=[root, built_in], gate="replacements")
    await eventually(lambda: routed(registry) == ["medical@1.0"])
    before = registry.get("medical").digest
    drop(root, "medical", number, 3, examples=8)
    await eventually(lambda: [one.digest for one in registry.list()] not in ([], [""], [before]))
    await eventually(lambda: states(registry) == {f"medical@{number}": "ready"})
    await registry.close()
    engine.held.clear()
    again = await start_registry(dirs=[root, built_in], gate="replacements")
    for info in (registry.get("medical"), again.get("medical")):
        assert (str(info.ref), info.routable, info.built_in) == (f"medical@{number}", True, False)


async def test_a_second_version_of_an_override_needs_proof_as_any_other(root, built_in, start_registry):
    drop(built_in, "m", "3.0", 7, examples=3)
    version(root, "1.0", examples=8)
    registry = await start_registry(dirs=[root, built_in], gate="replacements")
    version(root, "1.1", examples=8)
    await eventually(is_ready(registry, "m", "1.1"))
    assert routed(registry) == ["m@1.0"]
    assert "it would replace 1.0" in registry.get("m", "1.1").gate


async def test_a_refused_override_does_not_bring_the_built_in_folder_back(root, built_in, start_registry):
    drop(built_in, "medical", "1.0", 1)
    (drop(root, "medical", "0.1", 3) / "adapter_model.safetensors").unlink()
    registry = await start_registry(dirs=[root, built_in])
    await eventually(lambda: states(registry) == {"medical@0.1": "quarantined"})
