"""Start-up and trouble on disk: bad, vanishing, renamed and unreadable folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from router.engine.base import AdapterArtifact
from router.errors import RouterError
from router.registry import reconcile, state
from router.registry.folders import FolderReader, weights_sha256
from router.registry.format.artifact import FolderRules, Inspection
from router.registry.format.manifest import ReportCard, read_report
from router.registry.registry import Registry, RegistryOptions
from tests.registry.cards import hand_in
from tests.registry.conftest import FAST
from tests.registry.life import StubEngine, drop, eventually, is_ready, ref, states, weights

pytestmark = pytest.mark.slow

SHIPPED = sorted(p.parent for p in (Path(__file__).parents[2] / "adapters").glob("*/report.json"))


async def test_many_folders_are_known_by_name_before_they_are_checked(
    root, engine, start_registry, monkeypatch
):
    monkeypatch.setattr(reconcile, "BATCH", 4)
    monkeypatch.setattr(reconcile, "EXAMINE_SECONDS", 0.0)
    for i in range(20):
        drop(root, f"m{i}", "1.0", i + 1)
    (root / "m7/adapter_model.safetensors").write_bytes(b"short")
    (root / "m8/adapter.toml").write_text("[adapter")
    caught_up = list[int]()
    registry = await start_registry(preload=False, caught_up=lambda: caught_up.append(1))
    assert (len(states(registry)), caught_up) == (19, [])
    assert not all(i.rank for i in registry.list())
    async with registry.lease(ref("m3", "1.0")):
        assert registry.get("m3").rank == 4
    drop(root, "late", value=99)
    await eventually(lambda: "late@0" in states(registry))
    await eventually(lambda: all(i.rank for i in registry.list() if i.state != "quarantined"))
    refused = sorted(n for n, state in states(registry).items() if state == "quarantined")
    assert refused == ["m7@1.0", "m8@0"]
    await eventually(lambda: caught_up == [1])
    drop(root, "later", value=100)
    await eventually(lambda: "later@0" in states(registry))
    assert caught_up == [1]  # one folder is no mass


async def test_many_new_folders_leave_the_event_loop_its_turns_name_by_name(
    root, start_registry, engine, monkeypatch
):
    monkeypatch.setattr(reconcile, "BATCH", 4)
    monkeypatch.setattr(state, "PIECE_SECONDS", 0.0)
    for i in range(20):
        drop(root, f"m{i:02}", "1.0", i + 1, folder=f"m{i:02}-old")
        drop(root, f"m{i:02}", "2.0", 100 + i, folder=f"m{i:02}-new")
    registry = Registry(engine, [root], replace(FAST, state_dir=root.parent / "state", preload=False))
    starting = asyncio.create_task(registry.start())
    seen = set[int]()
    while not starting.done():
        await asyncio.sleep(0)
        there = [info.ref.name for info in registry.list()]
        assert all(there.count(name) == 2 for name in there)  # never half of a name
        assert all(registry.resolve(name).ref.version == "2.0" for name in there)
        seen.add(len(there))
    await registry.close()
    assert len(seen) > 10


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


class PausedReader(FolderReader):
    """Does something to the folder in the middle of a read."""

    def __init__(self, engine: StubEngine) -> None:
        super().__init__(engine, FolderRules(None))
        self.meanwhile = list[object]()

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        if self.meanwhile:
            self.meanwhile.pop()(folder)  # type: ignore[operator]
        result = super().read(folder)
        if self.meanwhile:
            self.meanwhile.pop()(folder)  # type: ignore[operator]
        return result


async def test_a_folder_replaced_while_it_is_read_is_read_again(root, engine, start_registry):
    drop(root, "m", value=1)
    reader = PausedReader(engine)
    registry = await start_registry(reader=reader, preload=False)
    reader.meanwhile = [lambda folder: drop(root, "m", value=2), lambda folder: None]
    async with registry.lease(ref("m")) as lease:
        assert list(engine.held) == [lease.digest]
    expected, _ = FolderReader(engine, FolderRules(None)).read(root / "m")
    assert lease.digest == expected.digest


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_folder_deleted_while_it_loads_harms_nobody(root, engine, start_registry, when):
    drop(root, "m")
    drop(root, "n", value=2)
    reader = PausedReader(engine)
    registry = await start_registry(reader=reader, preload=False)
    reader.meanwhile = [shutil.rmtree] if when == "before" else [shutil.rmtree, lambda folder: None]
    with pytest.raises(RouterError, match=r"removed|chang|not found"):
        async with registry.lease(ref("m")):
            pytest.fail("leased")
    await eventually(lambda: states(registry) == {"n@0": "discovered"})
    async with registry.lease(ref("n")):
        assert [a.name for a in engine.held.values()] == ["n"]


async def test_a_disk_that_fails_once_is_no_fault_of_the_adapter(root, engine, start_registry):
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    drop(root, "m")
    reader = PausedReader(engine)
    registry = await start_registry(reader=reader, preload=False)
    reader.meanwhile = [fail]
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
