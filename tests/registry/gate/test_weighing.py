from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from router.registry.disk.places import Scanner
from router.registry.format.artifact import inspect_folder
from router.registry.gate import weighing
from router.registry.gate.weighing import Scale
from router.registry.options import Workers
from router.registry.record import Record
from tests.registry.gate.cards import weights_of
from tests.registry.life import drop, ref
from tests.registry.tiny import BASE


def record(folder: Path) -> Record:
    """A version as it is after it was examined."""
    (found,) = Scanner([folder.parent]).scan().found.values()
    return Record(ref("m"), found, inspect_folder(folder, BASE, max_rank=8), lambda _: None)


async def weigh(one: Record, *, twice: bool = False) -> list[str]:
    """The weights that were told."""
    workers, told = Workers(), list[str]()
    scale = Scale(workers, lambda r: told.append(r.weights_sha256))
    scale.ask(one)
    if twice:
        scale.ask(one)
    assert await scale.settled(10)
    await scale.close()
    await workers.close()
    return told


async def test_weights_are_read_once_and_told(tmp_path: Path) -> None:
    folder = drop(tmp_path, "m")
    one = record(folder)
    assert await weigh(one, twice=True) == [weights_of(folder)]
    assert one.weights_sha256 == weights_of(folder)


async def test_files_that_change_meanwhile_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = drop(tmp_path, "m")
    real = weighing.weights_sha256

    def meanwhile(path: Path) -> str:
        found = real(path)
        drop(tmp_path, "m", value=2)
        return found

    one = record(folder)
    monkeypatch.setattr(weighing, "weights_sha256", meanwhile)
    assert await weigh(one) == []
    assert one.weights_sha256 == ""


async def test_weights_that_cannot_be_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = drop(tmp_path, "m")
    one = record(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert await weigh(one) == []
    assert "adapter m@0 are not compared with its report" in caplog.text


async def test_what_was_refused_or_not_examined_is_left_alone(tmp_path: Path) -> None:
    refused, unexamined = record(drop(tmp_path, "m")), record(tmp_path / "m")
    refused.quarantined, unexamined.inspection = True, None
    assert await weigh(refused) + await weigh(unexamined) == []


async def test_closing_does_not_wait_for_what_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(weighing, "weights_sha256", lambda path: go_on.wait(20) and "ab")
    workers, told = Workers(), list[Record]()
    scale = Scale(workers, told.append)
    scale.ask(record(drop(tmp_path, "m")))
    assert await scale.settled(0.05) is False
    async with asyncio.timeout(5):
        await scale.close()
    go_on.set()
    await workers.close()
    assert told == []
