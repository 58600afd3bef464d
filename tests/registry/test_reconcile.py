"""Start-up and trouble on disk: bad, vanishing, renamed and unreadable folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from router.engine.base import AdapterArtifact
from router.errors import RouterError
from router.registry import folders, reconcile
from router.registry.folders import weights_sha256
from router.registry.format.artifact import FolderRules, Inspection, digest_of_folder
from router.registry.format.manifest import ReportCard, read_report
from router.registry.registry import Registry, RegistryOptions
from tests.registry.cards import hand_in
from tests.registry.conftest import FAST
from tests.registry.life import drop, eventually, is_ready, ref, states, weights

pytestmark = pytest.mark.slow

SHIPPED = sorted(p.parent for p in (Path(__file__).parents[2] / "adapters").glob("*/report.json"))


async def test_many_new_folders_are_there_at_the_end_of_the_start_and_leave_the_loop_its_turns(
    root, start_registry, engine, monkeypatch
):
    monkeypatch.setattr(reconcile, "BATCH", 4)
    for i in range(20):
        drop(root, f"m{i:02}", "1.0", i + 1)
    (root / "m07/adapter_model.safetensors").write_bytes(b"short")
    registry = Registry(engine, [root], replace(FAST, state_dir=root.parent / "state", preload=False))
    starting = asyncio.create_task(registry.start())
    seen = set[int]()
    while not starting.done():
        await asyncio.sleep(0)
        seen.add(registry.count())
    assert len(seen) > 3
    assert (registry.count(), registry.get("m03").rank) == (19, 4)
    await eventually(lambda: states(registry).get("m07@1.0") == "quarantined")
    await registry.close()


async def test_a_slow_copy_is_read_once_it_is_whole(root, engine, start_registry):
    registry = await start_registry(grace_seconds=0.5)
    source, data = drop(root.parent, "slow", expect="I am"), weights(1.0)
    (root / "slow").mkdir()
    seen: set[str] = set()
    shutil.copy(source / "adapter_config.json", root / "slow")
    with (root / "slow/adapter_model.safetensors").open("wb") as file:
        for at in range(0, len(data), len(data) // 8 + 1):
            await asyncio.sleep(0.12)
            seen |= set(states(registry).values())
            file.write(data[at : at + len(data) // 8 + 1])
            file.flush()
    shutil.copy(source / "probes.jsonl", root / "slow")
    copied = time.monotonic()
    await eventually(is_ready(registry, "slow"))
    assert time.monotonic() - copied < 3
    assert (seen, engine.loads) == (set(), ["slow"])


async def test_a_folder_that_stays_broken_is_quarantined_and_recovers(root, start_registry):
    drop(root, "good")
    registry = await start_registry()
    folder = drop(root, "bad")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-10])
    (root / "empty").mkdir()
    await eventually(
        lambda: states(registry).get("bad@0") == states(registry).get("empty@0") == "quarantined"
    )
    assert "no adapter_config.json" in registry.get("empty").error
    async with registry.lease(ref("good")):
        pass
    (folder / "adapter_model.safetensors").write_bytes(whole)
    await eventually(is_ready(registry, "bad"))
    assert registry.get("bad").error == ""


async def test_links_are_quarantined_with_the_reason(root, start_registry):
    drop(root.parent, "outside")
    (root / "escape").symlink_to(root.parent / "outside")
    registry = await start_registry()
    await eventually(lambda: "escape@0" in states(registry))
    assert "symbolic link" in registry.get("escape").error


async def test_an_unreadable_folder_is_quarantined_and_tried_again(root, start_registry, monkeypatch):
    drop(root, "m")
    real = os.scandir

    def denied(path: os.PathLike[str]) -> object:
        if Path(path).name == "m":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("router.registry.reconcile.RETRY_SECONDS", 0.2)
    monkeypatch.setattr(os, "scandir", denied)
    registry = await start_registry()
    await eventually(lambda: states(registry) == {"m@0": "quarantined"})
    assert "cannot be read: Permission denied" in registry.get("m").error
    monkeypatch.setattr(os, "scandir", real)
    await eventually(is_ready(registry, "m"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_mode_000_leaves_the_loaded_version_serving(root, start_registry):
    folder = drop(root, "m")
    registry = await start_registry()
    folder.chmod(0)
    await eventually(lambda: bool(registry.get("m").error))
    async with registry.lease(ref("m")):
        pass
    folder.chmod(0o755)
    await eventually(lambda: not registry.get("m").error)


@pytest.fixture
def meanwhile(monkeypatch):
    """What is to be done to a folder before and after its files are read, the last first."""
    todo, real = list[Callable[[Path], object]](), folders.read_artifact

    def paused(folder: Path, rules: FolderRules) -> tuple[AdapterArtifact, Inspection]:
        if todo:
            todo.pop()(folder)
        result = real(folder, rules)
        if todo:
            todo.pop()(folder)
        return result

    monkeypatch.setattr(folders, "read_artifact", paused)
    return todo


async def test_a_folder_replaced_while_it_is_read_is_read_again(root, engine, start_registry, meanwhile):
    drop(root, "m", value=1)
    registry = await start_registry(preload=False)
    meanwhile += [lambda folder: drop(root, "m", value=2), lambda folder: None]
    async with registry.lease(ref("m")) as lease:
        assert list(engine.held) == [lease.digest]
    assert lease.digest == digest_of_folder(root / "m")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_folder_deleted_while_it_loads_harms_nobody(root, engine, start_registry, meanwhile, when):
    drop(root, "m")
    drop(root, "n", value=2)
    registry = await start_registry(preload=False)
    meanwhile += [shutil.rmtree] if when == "before" else [shutil.rmtree, lambda folder: None]
    with pytest.raises(RouterError, match=r"removed|chang|not found"):
        async with registry.lease(ref("m")):
            pytest.fail("leased")
    await eventually(lambda: states(registry) == {"n@0": "discovered"})
    async with registry.lease(ref("n")):
        assert [a.name for a in engine.held.values()] == ["n"]


async def test_a_disk_that_fails_once_is_no_fault_of_the_adapter(root, engine, start_registry, meanwhile):
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    drop(root, "m")
    registry = await start_registry(preload=False)
    meanwhile.append(fail)
    async with registry.lease(ref("m")):
        assert states(registry) == {"m@0": "ready"}


async def test_with_the_usual_settings_a_copied_folder_is_ready_within_three_seconds(root, start_registry):
    usual = RegistryOptions()
    registry = await start_registry(
        poll_seconds=usual.poll_seconds,
        settle_seconds=usual.settle_seconds,
        grace_seconds=usual.grace_seconds,
        host_memory_bytes=usual.host_memory_bytes,
    )
    started = time.monotonic()
    shutil.copytree(drop(root.parent, "m", expect="I am"), root / "m")
    await eventually(is_ready(registry, "m"))
    assert time.monotonic() - started < 3


def test_a_report_a_problem_or_nothing(tmp_path):
    folder = drop(tmp_path, "m")
    assert read_report(folder) is None
    hand_in(folder)
    assert isinstance(read_report(folder), ReportCard)
    (folder / "report.json").write_text("{")
    assert str(read_report(folder)).startswith("not JSON")
    assert read_report(tmp_path / "gone") == "not a readable folder: No such file or directory"


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_reports_of_shipped_adapters_are_about_their_weights(folder):
    report = read_report(folder)
    assert isinstance(report, ReportCard)
    assert report.weights_sha256 == weights_sha256(folder)
