"""`lora-router replicas`, against a server over fake engines."""

import asyncio
import json
import re

import pytest

from router.engine.fake import FakeEngine
from router.replicas import host, members, replica
from router.replicas.engine import FleetEngine
from router.replicas.link import LinkLost
from router.replicas.membership import OwnedMembership
from tests.replicas.local import LocalLink


@pytest.fixture
async def command(start_server, cli, monkeypatch):
    """Run a command in a thread while a server over two replicas goes on in this loop."""
    for module in (host, replica):
        monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(members, "REPORT_SECONDS", 0.02)
    monkeypatch.setattr(replica, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr("router.extensions.replicas.service.LOOK_SECONDS", 0.01)

    def link(name: str) -> LocalLink:
        return LocalLink(name, lambda: FakeEngine(step_seconds=0.001))

    membership = OwnedMembership(2, 2)
    engine = FleetEngine(link, FakeEngine, max_running=4, max_queue=8, membership=membership)
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
    assert out.splitlines()[-1] == "2 replicas"
    found = json.loads((await command("list", "--json"))[1])
    assert (found["least"], found["most"]) == (2, 2)
    assert [(one["name"], one["state"]) for one in found["replicas"]] == [("0", "serving"), ("1", "serving")]


async def test_all_are_replaced_with_every_step(command):
    code, out, err = await command("replace", "--all")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "0 -> 2: starting" in lines
    assert [line for line in lines if line.endswith("done")] == ["0 -> 2: done", "1 -> 3: done"]
    assert lines[-1] == "2 replaced"
    (one,) = json.loads((await command("replace", "2", "--json"))[1])
    assert one == {"old": "2", "new": "4", "step": "done", "problem": ""}


async def test_one_that_is_not_replaced_is_named(command):
    make = command.members._link

    def broken(name):
        link = make(name)
        link._make = fails
        return link

    def fails():
        raise LinkLost("no node has room for it")

    command.members._link = broken
    code, out, err = await command("replace", "0")
    assert code == 1
    assert "0 -> 2: failed, replica 2 did not come up: no node has room for it" in out.splitlines()
    assert err.startswith("lora-router: not replaced: 0; `lora-router replicas list`")


async def test_how_many_there_may_be(command):
    assert (await command("resize", "2..4"))[1] == "2 to 4 replicas, as load asks from now on\n"
    assert (await command("resize", "3"))[1] == "3 replicas from now on\n"
    assert json.loads((await command("resize", "1..2", "--json"))[1]) == {"least": 1, "most": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("resize", "many"), 2, "'many': must be a number N of replicas, or LEAST..MOST such as 2..8"),
        (("resize", "8..2"), 2, "the first not above the second"),
        (("resize", "0"), 2, "least: must be from 1 to 1024, not 0"),
        (("resize",), 2, "Missing argument"),
        (("replace",), 2, "say which replicas, or --all"),
        (("replace", "--all", "0"), 2, "say which replicas, or --all"),
        (("replace", "nobody"), 1, "replica 'nobody' not found: there are 0, 1"),
    ],
)
async def test_what_is_asked_wrongly(command, arguments, code, said):
    got, out, err = await command(*arguments)
    assert (got, out) == (code, "")
    assert re.search(re.escape(said), err)


async def test_a_server_without_replicas_says_what_to_do(server, cli, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_SERVER", server.address)
    for arguments in (("list",), ("resize", "2"), ("replace", "--all")):
        done = await asyncio.to_thread(cli, "replicas", *arguments)
        assert (done.code, done.out) == (1, "")
        assert "start it with `serve --replicas N`" in done.err
