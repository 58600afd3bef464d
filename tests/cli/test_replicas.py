"""`lora-router replicas`, against a server over fake engines."""

import asyncio
import json

import pytest

from router.engine.fake import FakeEngine
from router.replicas import host, members, replica
from router.replicas.engine import FleetEngine
from router.replicas.membership import FixedMembership
from tests.replicas.local import LocalLink


@pytest.fixture
async def command(start_server, cli, monkeypatch):
    """Run a command in a thread while a server over two replicas goes on in this loop."""
    for module in (host, replica):
        monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(members, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(replica, "FIRST_PAUSE", 0.02)

    links = [LocalLink(name, lambda: FakeEngine(step_seconds=0.001)) for name in "01"]
    engine = FleetEngine(FixedMembership(links), FakeEngine, max_running=4, max_queue=8)
    server = await start_server(engine=engine)
    monkeypatch.setenv("LORA_ROUTER_SERVER", server.address)

    async def run(*arguments: str):
        done = await asyncio.to_thread(cli, "replicas", *arguments)
        return done.code, done.out, done.err

    run.members = engine.members
    return run


async def test_they_are_listed(command):
    code, out, _ = await command("list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["0", "serving"], ["1", "serving"]]
    found = json.loads((await command("list", "--json"))[1])
    assert [(one["name"], one["state"]) for one in found] == [("0", "serving"), ("1", "serving")]


async def test_one_is_drained(command):
    assert await command("drain", "0") == (0, "0 drains; `lora-router replicas list` shows it\n", "")
    code, out, err = await command("drain", "nobody")
    assert (code, out) == (1, "")
    assert "replica 'nobody' not found: there are 0, 1" in err


async def test_a_server_without_replicas_says_what_to_do(server, cli, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_SERVER", server.address)
    for arguments in (("list",), ("drain", "0")):
        done = await asyncio.to_thread(cli, "replicas", *arguments)
        assert (done.code, done.out) == (1, "")
        assert "start it with `serve --set replicas=N`" in done.err
