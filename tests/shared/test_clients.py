"""The clients file of several edges: edited at one, the same at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.access.access import Access
from router.access.clients import parse_clients
from router.cli.clients import write
from router.shared import clients as module
from router.shared.clients import ClientsFile
from tests.registry.life import eventually
from tests.shared.conftest import Edge
from tests.shared.memory import MemoryDatabase

ONE = '[[client]]\nid = "ann"\ncert = "ann.example"\nrequests_per_minute = 6\n'
TWO = ONE.replace("= 6", "= 7")
THREE = ONE.replace("= 6", "= 8")
Begin = Callable[..., Awaitable[ClientsFile]]


@pytest.fixture
async def begin(edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """`await begin("a", ONE)`: an edge with that file; without a text, with the one that it has."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    async with AsyncExitStack() as stack:

        async def start(name: str, text: str = "") -> ClientsFile:
            path = tmp_path / name / "clients.toml"
            path.parent.mkdir(exist_ok=True)
            if text:
                path.write_text(text)
            found = ClientsFile(path, await edge(name), path.parent / "synced.json", write)
            await found.start()
            stack.push_async_callback(found.close)
            return found

        yield start


def says(found: ClientsFile) -> str:
    return found._path.read_text()


def synced(*files: ClientsFile) -> Callable[[], bool]:
    return lambda: len({(f._sha256, f._revision) for f in files}) == 1 and files[0]._revision > 0


async def test_a_quota_changed_at_one_edge_holds_at_the_other(begin: Begin) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))
    access = Access(b._path)
    a._path.write_text(TWO)
    await eventually(lambda: says(b) == TWO)
    access.look()
    assert access._clients.all[0].requests_per_minute == 7
    b._path.write_text(THREE)
    await eventually(lambda: says(a) == THREE)
    assert a._path.stat().st_mode & 0o777 == 0o600
    assert not a.flaws + b.flaws


async def test_who_joins_goes_by_what_there_is_and_keeps_its_own_aside(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    a = await begin("a", ONE)
    await eventually(synced(a))
    b = await begin("b", TWO)
    await eventually(lambda: says(b) == ONE)
    (aside,) = [p for p in b._path.parent.iterdir() if p.name.startswith("clients.toml.")]
    assert aside.read_text() == TWO
    await eventually(lambda: "make its changes again" in caplog.text)
    assert says(a) == ONE


async def test_one_that_was_stopped_takes_what_changed_meanwhile(begin: Begin) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))
    await b.close()
    a._path.write_text(TWO)
    await eventually(lambda: a._revision == 2)
    assert says(b) == ONE
    again = await begin("b")
    await eventually(lambda: says(again) == TWO)
    assert len(list(b._path.parent.iterdir())) == 2  # nothing was put aside


async def test_an_edit_holds_here_while_the_database_is_away_and_everywhere_when_it_is_back(
    begin: Begin, database: MemoryDatabase
) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))
    database.down = True
    a._path.write_text(TWO)
    await asyncio.sleep(0.1)
    assert (says(a), says(b)) == (TWO, ONE)
    database.down = False
    await eventually(lambda: says(b) == TWO)


async def test_a_file_that_is_wrong_is_given_to_nobody(begin: Begin) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))
    a._path.write_text("[[client]]\nid = 3\n")
    await asyncio.sleep(0.1)
    assert says(b) == ONE
    a._path.write_text(TWO)
    await eventually(lambda: says(b) == TWO)


async def test_a_file_that_cannot_be_written_is_a_flaw(begin: Begin) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    b._write = refuse
    a._path.write_text(TWO)
    await eventually(lambda: bool(b.flaws))
    assert "clients.toml is not what edges share: Permission denied" in b.flaws[0]
    b._write = write
    await eventually(lambda: not b.flaws)
    assert says(b) == TWO


@pytest.mark.parametrize(
    "document", [None, 7, "text", ["x"], {"text": "\0"}, {"text": ONE + "expires = 1"}], ids=str
)
async def test_any_document_of_another_edge_leaves_the_file_as_it_is(begin: Begin, document: object) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))
    await a._shared.put("clients", document)
    await eventually(lambda: b._shared.get("clients") == document)
    await eventually(lambda: bool(b.flaws) or document is None)
    assert says(b) == ONE
    await a._shared.put("clients", {"text": TWO})
    await eventually(lambda: says(b) == TWO and not b.flaws)


async def test_an_exception_that_nobody_expects_does_not_end_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await begin("a", ONE), await begin("b", ONE)
    await eventually(synced(a, b))

    def fail(_: str) -> None:
        raise OverflowError("out of range")

    monkeypatch.setattr(module, "parse_clients", fail)
    a._path.write_text(TWO)
    await eventually(lambda: "OverflowError: out of range" in str(b.flaws))
    monkeypatch.setattr(module, "parse_clients", parse_clients)
    await eventually(lambda: says(b) == TWO and not b.flaws)


async def test_a_damaged_memory_of_what_was_shared_is_told(
    begin: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/synced.json").write_text("{")
    a = await begin("a", ONE)
    assert "cannot be used" in caplog.text
    await eventually(synced(a))
