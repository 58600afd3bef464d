"""FleetService over a fleet of fake engines: what operators see, and drain."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from router.engine.fake import FakeEngine
from router.extensions import replicas as replicas_plugin
from router.replicas import host, members, replica
from router.replicas.engine import FleetEngine
from router.replicas.link import LinkLost
from router.replicas.membership import FixedMembership
from router.v1 import fleet_pb2 as pb
from tests.audited import entries
from tests.engine.contract import until
from tests.replicas.local import LocalLink
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, details, failure

SERVING, DRAINING = pb.Replica.STATE_SERVING, pb.Replica.STATE_DRAINING


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (host, replica):
        monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(members, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(replica, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(replicas_plugin, "PLACES_SECONDS", 0.02)


@pytest.fixture
async def at(start_server: Start, connect: Connect, tmp_path: Path) -> SimpleNamespace:
    """A server over two replicas, its links and stubs, clients and audit."""
    made: list[LocalLink] = []

    def link(name: str) -> LocalLink:
        made.append(LocalLink(name, lambda: FakeEngine(step_seconds=0.001, max_running=4, max_queue=8)))
        return made[-1]

    engine = FleetEngine(FixedMembership([link("0"), link("1")]), FakeEngine, max_running=4, max_queue=8)
    clients, file = write_clients(tmp_path), tmp_path / "audit.jsonl"
    app = await start_server(engine=engine, clients=clients.path, audit=file)
    stubs = connect(app)

    async def listed() -> dict[str, pb.Replica]:
        answer = await stubs.fleet.ListReplicas(pb.ListReplicasRequest(), metadata=bearer(clients.observe))
        return {one.name: one for one in answer.replicas}

    def drain(name: str) -> Any:
        return stubs.fleet.DrainReplica(pb.DrainReplicaRequest(name=name), metadata=bearer(clients.admin))

    return SimpleNamespace(
        app=app,
        engine=engine,
        links=made,
        stubs=stubs,
        clients=clients,
        file=file,
        listed=listed,
        drain=drain,
    )


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return {v.field: v.description for v in details(error)["BadRequest"].field_violations}


async def test_all_are_listed_with_what_they_do(at: SimpleNamespace) -> None:
    found = await at.listed()
    assert [(one.name, one.state, one.device) for one in found.values()] == [
        ("0", SERVING, "cpu"),
        ("1", SERVING, "cpu"),
    ]
    assert all(one.since.seconds > 1e9 for one in found.values())
    at.links[0]._make = lambda: _fails("its GPU is gone")
    await asyncio.to_thread(at.links[0].kill)
    await until(lambda: at.engine.replicas[0].state == "lost")
    lost = (await at.listed())["0"]
    assert lost.state == pb.Replica.STATE_LOST
    assert lost.problem


def _fails(why: str) -> Any:
    raise LinkLost(why)


async def test_places_are_those_of_the_replicas_that_are_up(at: SimpleNamespace) -> None:
    await until(lambda: at.app.admission.limit == 24)
    at.links[0]._make = lambda: _fails("its GPU is gone")
    await asyncio.to_thread(at.links[0].kill)
    await until(lambda: at.app.admission.limit == 12)


async def test_a_drain_is_in_the_audit(at: SimpleNamespace) -> None:
    await at.drain("0")
    await until(lambda: at.engine.replicas[0].draining)
    line = await _line(at, "DrainReplica")
    assert (line["code"], line["client"], line["resource"]) == ("OK", "admin", "0")
    for name, code in (("nobody", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)):
        assert (await failure(at.drain(name))).code() is code


async def _line(at: SimpleNamespace, method: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [one for one in entries(at.file) if one["method"].endswith(method)]

    await until(lambda: bool(found()))
    return found()[-1]


async def test_how_many_there_are_is_in_the_metrics(at: SimpleNamespace) -> None:
    page = generate_latest(at.app.metrics.registry).decode()
    counted = dict(re.findall(r'^lora_router_replicas\{state="(\w+)"\} (\S+)$', page, re.MULTILINE))
    assert counted == {"starting": "0.0", "serving": "2.0", "lost": "0.0", "draining": "0.0"}


async def test_a_server_without_replicas_says_what_to_do(stubs: SimpleNamespace) -> None:
    for call in (
        stubs.fleet.ListReplicas(pb.ListReplicasRequest()),
        stubs.fleet.DrainReplica(pb.DrainReplicaRequest(name="0")),
    ):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "serve --set replicas=N" in str(error.details())
