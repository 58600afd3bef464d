"""FleetService over a fleet of fake engines: what operators see, and replace while requests run."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.access.audit import entries
from router.engine.fake import FakeEngine
from router.extensions import replicas as replicas_plugin
from router.extensions.replicas import service as server_fleet
from router.replicas import host, members, replica
from router.replicas.engine import FleetEngine
from router.replicas.link import LinkLost
from router.replicas.membership import OwnedMembership
from router.v1 import fleet_pb2 as pb
from tests.engine.contract import until
from tests.replicas.local import LocalLink
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, messages

SERVING, DRAINING = pb.Replica.STATE_SERVING, pb.Replica.STATE_DRAINING
Steps = pb.ReplaceReplicasResponse


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (host, replica):
        monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(members, "REPORT_SECONDS", 0.02)
    monkeypatch.setattr(replica, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(server_fleet, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(replicas_plugin, "PLACES_SECONDS", 0.02)


@pytest.fixture
async def at(start_server: Start, connect: Connect, tmp_path: Path) -> SimpleNamespace:
    """A server over two replicas, its links and stubs, clients and audit."""
    made: list[LocalLink] = []

    def link(name: str) -> LocalLink:
        made.append(LocalLink(name, lambda: FakeEngine(step_seconds=0.001, max_running=4, max_queue=8)))
        return made[-1]

    membership = OwnedMembership(2, 2)
    engine = FleetEngine(link, FakeEngine, max_running=4, max_queue=8, membership=membership)
    clients, file = write_clients(tmp_path), tmp_path / "audit.jsonl"
    app = await start_server(engine=engine, clients=clients.path, audit=file)
    stubs = connect(app)

    async def listed() -> dict[str, pb.Replica]:
        answer = await stubs.fleet.ListReplicas(pb.ListReplicasRequest(), metadata=bearer(clients.observe))
        return {one.name: one for one in answer.replicas}

    def replace(**fields: Any) -> Any:
        return stubs.fleet.ReplaceReplicas(
            pb.ReplaceReplicasRequest(**fields), metadata=bearer(clients.admin)
        )

    def resize(least: int, most: int) -> Any:
        request = pb.ResizeReplicasRequest(least=least, most=most)
        return stubs.fleet.ResizeReplicas(request, metadata=bearer(clients.admin))

    return SimpleNamespace(
        app=app,
        engine=engine,
        links=made,
        stubs=stubs,
        clients=clients,
        file=file,
        listed=listed,
        replace=replace,
        resize=resize,
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


async def test_all_are_replaced_under_a_stream_of_requests(at: SimpleNamespace) -> None:
    stop = asyncio.Event()
    infer = bearer(at.clients.infer)

    async def client() -> int:
        count = 0
        while not stop.is_set():
            answer = await at.stubs.inference.Generate(ask(), metadata=infer)
            assert answer.text == "[base] one two three"
            count += 1
        return count

    tasks = [asyncio.create_task(client()) for _ in range(4)]
    long = asyncio.create_task(messages(at.stubs.inference.StreamGenerate(long_stream(100), metadata=infer)))
    steps = await messages(at.replace(all=True))
    stop.set()
    assert min(await asyncio.gather(*tasks)) > 1
    assert (await long)[-1].finished.usage.completion_tokens == 100
    last = {step.old: (step.new, step.step) for step in steps}
    assert last == {"0": ("2", Steps.STEP_DONE), "1": ("3", Steps.STEP_DONE)}
    of_first = [step.step for step in steps if step.old == "0"]
    assert of_first == sorted(of_first)
    assert [name for name, one in (await at.listed()).items() if one.state == SERVING] == ["2", "3"]


async def test_one_that_does_not_come_up_is_told_and_the_old_ones_stay(at: SimpleNamespace) -> None:
    make = at.engine.members._link

    def broken(name: str) -> Any:
        link = make(name)
        link._make = lambda: _fails("no node has room for it")
        return link

    at.engine.members._link = broken
    steps = await messages(at.replace(all=True))
    last = {step.old: step for step in steps}
    assert {step.step for step in last.values()} == {Steps.STEP_FAILED}
    assert last["0"].problem == "replica 2 did not come up: no node has room for it"
    assert last["1"].problem == "not tried, since that of 0 failed"
    found = await at.listed()
    assert [found[name].state for name in "01"] == [SERVING, SERVING]


async def test_what_was_begun_goes_on_when_the_caller_leaves(at: SimpleNamespace) -> None:
    call = at.replace(names=["0"])
    assert (await anext(aiter(call))).old == "0"
    call.cancel()
    await until(lambda: [one.name for one in at.engine.replicas] == ["1", "2"])
    line = await _line(at, "ReplaceReplicas")
    assert (line["code"], line["resource"]) == ("CANCELLED", "0")


async def test_other_bounds_hold_at_once_and_are_in_the_audit(at: SimpleNamespace) -> None:
    answer = await at.resize(3, 5)
    assert (answer.least, answer.most) == (3, 5)
    await until(lambda: len(at.engine.replicas) == 3)
    await until(lambda: at.app.admission.limit == 36)  # as many places as three have
    line = await _line(at, "ResizeReplicas")
    assert (line["code"], line["client"], line["resource"]) == ("OK", "admin", "3..5")
    await messages(at.replace(names=["0", "0"]))
    line = await _line(at, "ReplaceReplicas")
    assert (line["code"], line["resource"]) == ("OK", "0, 0")


async def _line(at: SimpleNamespace, method: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [one for one in entries(at.file) if one["method"].endswith(method)]

    await until(lambda: bool(found()))
    return found()[-1]


async def test_names_and_bounds_that_are_none(at: SimpleNamespace) -> None:
    for request, field, text in (
        ({}, "names", "say which replicas, or set all"),
        ({"all": True, "names": ["0"]}, "names", "are left out where all is set"),
        ({"names": [""]}, "names[0]", "must be the name of a replica"),
        ({"names": ["0", "x" * 257]}, "names[1]", "must have at most 256 bytes"),
        ({"names": ["0"] * 1025}, "names", "must have at most 1024 entries"),
    ):
        error = await failure(at.replace(**request))  # type: ignore[arg-type]
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error) == {field: text}
    error = await failure(at.resize(2, 1))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "most" in violations(error)
    plan = at.engine.members.fleet_plan
    assert (plan.replacements, plan.least, plan.most) == ((), 2, 2)


async def test_how_many_there_are_is_in_the_metrics(at: SimpleNamespace) -> None:
    page = (await at.app.metrics.page())[0].decode()
    counted = dict(re.findall(r'^lora_router_replicas\{state="(\w+)"\} (\S+)$', page, re.MULTILINE))
    assert counted == {"starting": "0.0", "serving": "2.0", "lost": "0.0", "draining": "0.0"}


async def test_a_server_without_replicas_says_what_to_do(stubs: SimpleNamespace) -> None:
    for call in (
        stubs.fleet.ListReplicas(pb.ListReplicasRequest()),
        stubs.fleet.ResizeReplicas(pb.ResizeReplicasRequest(least=1, most=2)),
        stubs.fleet.ReplaceReplicas(pb.ReplaceReplicasRequest(all=True)),
    ):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "serve --replicas N" in str(error.details())
