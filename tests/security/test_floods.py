"""Floods, in small: each is bounded and counted, and who calls beside it is answered."""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.server.app import ServerApp
from router.server.listen import MOST_CONNECTIONS, most_connections, server_options
from router.v1 import inference_pb2 as pb
from tests.security.attacks import floods
from tests.server.helpers import Connect, Start, ask, details, failure, until

pytestmark = pytest.mark.slow
ANY = "127.0.0.1:0"
Begin = Callable[..., Awaitable[tuple[ServerApp, SimpleNamespace]]]


@pytest.fixture
def begin(start_server: Start, connect: Connect, fakes: SimpleNamespace) -> Begin:
    """A server, and the stubs of a neighbour who has called before the attack."""

    async def start(**said: Any) -> tuple[ServerApp, SimpleNamespace]:
        server = await start_server(**{**vars(fakes), "metrics_listen": ANY, **said})
        neighbour = connect(server)
        assert (await neighbour.inference.Generate(ask(), timeout=20)).text
        return server, neighbour

    return start


async def beside(attack: Awaitable[floods.Seen], neighbour: SimpleNamespace) -> tuple[floods.Seen, int]:
    """What the attacker saw, and how many answers the neighbour got; one that fails fails the test."""
    attacking, answers = asyncio.ensure_future(attack), 0
    while not attacking.done():
        assert (await neighbour.inference.Generate(ask(), timeout=20)).text
        answers += 1
        await asyncio.sleep(0.01)
    return attacking.result(), answers


async def page(address: str, path: str) -> str:
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.decode()


async def shed(server: ServerApp) -> dict[str, int]:
    """Calls that met a bound, as a scraper sees them."""
    text = await page(server.metrics_address, "/metrics")
    found = re.findall(r'^lora_router_shed_total{bound="(\w+)"} (\d+)', text, re.MULTILINE)
    return {bound: int(number) for bound, number in found if int(number)}


async def quiet(server: ServerApp) -> None:
    """Nothing is left of an attack."""
    await until(lambda: server.admission.in_flight == 0 and not server.engine.status().busy, 20)
    assert all(info.leases == 0 for info in server.registry.list())


# -- Calls.


async def test_half_open_calls_take_no_place_from_others(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without turns they would take all places, and the neighbour's call would be refused for 30 s."""
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 30.0)
    server, neighbour = await begin()
    seen, answers = await beside(floods.half_open(server.address, 700, 2, seconds=2), neighbour)
    assert answers
    assert server.admission.limit < 700
    assert seen["ended"] < 700
    await quiet(server)


async def test_half_open_calls_from_everywhere_give_way(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More connections than turns, each with a call or two."""
    monkeypatch.setattr("router.server.admission.READ_SLOTS", 16)
    monkeypatch.setattr("router.server.admission.GRACE_SECONDS", 0.05)
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 30.0)
    server, neighbour = await begin()
    seen, answers = await beside(floods.half_open(server.address, 120, 60, seconds=2), neighbour)
    assert answers
    assert seen["ended"] >= answers // 2  # most answers took a turn from one of them
    assert (await shed(server))["no_body"] >= seen["ended"] - 1
    await quiet(server)


async def test_bodies_that_come_byte_by_byte_end_in_time(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 0.5)
    server, neighbour = await begin()
    seen, _ = await beside(floods.slow_writers(server.address, 60, 2, seconds=3), neighbour)
    assert seen["ended"] == 60
    counted = await shed(server)
    assert counted["no_body"] + counted.get("turns", 0) == 60
    await quiet(server)


async def test_rapid_resets_leave_nothing_behind(begin: Begin) -> None:
    server, neighbour = await begin()
    await beside(floods.rapid_resets(server.address, 1500, 3), neighbour)
    await quiet(server)
    assert (await neighbour.inference.Generate(ask(), timeout=20)).text


async def test_calls_wait_behind_those_of_their_method_alone(begin: Begin) -> None:
    """In one queue with the attacker's, calls of other methods would be cancelled unseen where it is full."""
    server, neighbour = await begin()
    attacking = asyncio.ensure_future(floods.rapid_resets(server.address, 20_000, 4))
    request = pb.RouteRequest(input=pb.Input(text="a b"))
    while not attacking.done():
        assert (await neighbour.inference.Route(request, timeout=20)).decision
    await attacking
    await quiet(server)


async def test_answers_that_nobody_reads_are_ended(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bound they would keep their places and leases until their deadline, 600 s."""
    monkeypatch.setattr("router.server.admission.SEND_SECONDS", 0.5)
    server, neighbour = await begin()
    attack = floods.slow_readers(server.address, 40, 2, seconds=6)
    attacking = asyncio.ensure_future(beside(attack, neighbour))
    await until(lambda: server.admission.in_flight >= 40, 20)
    await until(lambda: server.admission.in_flight <= 1, 20)
    assert (await shed(server))["not_reading"] == 40
    await attacking
    await quiet(server)


async def test_windows_of_one_byte(begin: Begin) -> None:
    server, neighbour = await begin()
    seen, _ = await beside(floods.tiny_windows(server.address, 20, seconds=2), neighbour)
    assert seen["bytes"] <= 20 * 42
    await quiet(server)


@pytest.mark.parametrize("kind", ["health", "adapters", "reflection"])
async def test_watches_are_few_on_a_connection_and_in_all(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("router.server.admission.WATCHES_EACH", {"connection": 10, "address": 25})
    monkeypatch.setattr("router.server.admission.MOST_WATCHES", 25)
    server, neighbour = await begin()
    seen, _ = await beside(floods.watches(server.address, 80, 4, kind), neighbour)
    assert seen["ended"] == 55
    assert (await shed(server))["watches"] == 55
    watch = health_pb2_grpc.HealthStub(neighbour.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await anext(aiter(watch))).status == 1
    watch.cancel()


async def test_a_flood_of_refusals_is_no_flood_of_lines(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("router.server.interceptors.LINES_PER_SECOND", 0)
    caplog.set_level("INFO", "router.server.access")
    server, neighbour = await begin()
    server.admission.limit = 0
    for _ in range(40):
        await failure(neighbour.inference.Generate(ask(), timeout=20))
    server.admission.limit = 10
    assert (await neighbour.inference.Generate(ask(), timeout=20)).text
    lines = [vars(record)["fields"] for record in caplog.records if record.message == "request"]
    assert [(line["code"], line.get("left_out", 0)) for line in lines] == [("OK", 0), ("OK", 40)]


# -- Connections.


async def test_connections_are_counted(
    begin: Begin, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.listen.MOST_CONNECTIONS", 20)
    server, neighbour = await begin()
    seen, _ = await beside(floods.idle(server.address, 40, seconds=1), neighbour)
    assert seen["not connected"] == 21
    other = connect(server)
    assert (
        await other.inference.Generate(ask(), timeout=20, wait_for_ready=True)
    ).text  # there is room again


def test_descriptors_are_left_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 4096))
    assert most_connections() == 150
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert most_connections() == MOST_CONNECTIONS


async def test_a_connection_without_calls_ends(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.listen.CONNECTION_IDLE_MS", 300)
    server, _ = await begin()
    seen = await floods.idle(server.address, 5, seconds=10)
    assert seen["goodbye"] == 5


async def test_silent_connections_are_closed(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.listen.HANDSHAKE_MS", 500)
    server, neighbour = await begin()
    seen, _ = await beside(floods.silent(server.address, 100, seconds=10), neighbour)
    assert seen == {"closed": 100}


# -- Frames. The library bounds these; a version that no longer does is found here.


@pytest.mark.parametrize(
    ("attack", "number", "end"),
    [
        (floods.pings, 2_000, "closed"),
        (floods.acknowledgements, 100, "closed"),
        (floods.setting_frames, 5_000, ""),
        (floods.continuations, 2_000, "ended"),
        (floods.empty_frames, 5_000, ""),
        (floods.empty_messages, 5_000, "ended"),
        (floods.metadata, 20, "ended"),
        (floods.bomb, 5, "ended"),
    ],
)
async def test_frames(begin: Begin, attack: Callable[..., Any], number: int, end: str) -> None:
    server, neighbour = await begin()
    process = psutil.Process()
    before = process.memory_info().rss
    seen, answers = await beside(attack(server.address, number), neighbour)
    assert answers
    assert not end or seen[end] >= (number if attack in (floods.metadata, floods.bomb) else 1), seen
    assert process.memory_info().rss - before < 120 << 20  # a bomb alone is 60, the attack is in this process
    await quiet(server)


async def test_long_prompts_are_refused_unread(begin: Begin) -> None:
    server, neighbour = await begin()
    seen, answers = await beside(floods.long_prompts(server.address, 40), neighbour)
    assert answers
    assert seen["ended"] == 40
    await quiet(server)


async def test_constraints_that_take_long_take_no_neighbours_place(begin: Begin) -> None:
    """A constraint that takes little is compiled after them."""
    server, neighbour = await begin()
    seen, answers = await beside(floods.constraints(server.address, 120, seconds=60), neighbour)
    assert answers
    assert seen["ended"] == 120
    reply = await neighbour.inference.Generate(ask(sampling={"choices": {"values": ["mine"]}}), timeout=20)
    assert reply.text == "mine"
    await quiet(server)


async def test_much_metadata_is_refused_unseen(begin: Begin) -> None:
    server, neighbour = await begin()
    refused = await failure(neighbour.inference.Generate(ask(), metadata=(("x-large", "v" * 20_000),)))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 'grpc_method="/router.v1.InferenceService/Generate",grpc_status="RESOURCE' not in await page(
        server.metrics_address, "/metrics"
    )


LARGE = "x" * 1_000_000


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"labels": {"k": LARGE}}, "labels[k]"),
        ({"labels": {LARGE: "v"}}, "labels"),
        ({"labels": {str(n): "v" for n in range(20_000)}}, "request"),
        ({"routing": {"adapter": "adapters/" + LARGE}}, "routing.adapter"),
        ({"routing": {"domain": LARGE}}, "routing.domain"),
        ({"routing": {"task": LARGE}}, "routing.task"),
        ({"routing": {"unit": LARGE}}, "routing.unit"),
        ({"sampling": {"stop": [LARGE]}}, "sampling.stop"),
        ({"sampling": {"stop": ["s"] * 100_000}}, "request"),
    ],
)
async def test_large_names_are_refused_in_few_words(
    stubs: SimpleNamespace, fields: dict[str, Any], named: str
) -> None:
    error = await failure(stubs.inference.Generate(ask(**fields), timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details(error)["BadRequest"].field_violations
    assert any(one.field.startswith(named) for one in violations)
    assert len(error.details() or "") < 1100


# -- HTTP.


@pytest.mark.parametrize("listener", ["http_address", "metrics_address"])
@pytest.mark.parametrize(
    "kind",
    ["unread_chunks", "trailer", "trailers", "header", "headers", "many_headers", "folded_headers"],
)
async def test_requests_of_many_parts_are_refused_and_hung_up_on(
    begin: Begin, kind: str, listener: str
) -> None:
    server, neighbour = await begin(http_listen=ANY)
    attack = floods.framings(getattr(server, listener), 8, kind, size=200_000, seconds=60)
    seen, answers = await beside(attack, neighbour)
    assert answers
    assert seen["closed"] == 8
    assert seen["400"] + seen["404"] == 8  # the path has its 404 before the chunks are refused
    await quiet(server)


async def test_a_thousand_scrapes_at_once_make_few_pages(begin: Begin) -> None:
    server, neighbour = await begin()
    made = 0

    def counted() -> None:
        nonlocal made
        made += 1

    server.metrics.updates.append(counted)
    seen, _ = await beside(floods.scrapes(server.metrics_address, 1000), neighbour)
    assert seen.total() == 1000
    assert 1 <= made <= seen["200"] / 2
    assert " 200 OK" in await page(server.metrics_address, "/healthz")


async def test_slow_callers_make_room_for_probes(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.listen.MOST_PROBES", 20)
    server, neighbour = await begin()
    attacking = asyncio.ensure_future(floods.slow_http(server.metrics_address, 80, seconds=2))
    await asyncio.sleep(0.5)
    for _ in range(10):
        assert " 200 OK" in await page(server.metrics_address, "/readyz")
    assert (await shed(server))["http"] >= 20
    await attacking
    assert (await neighbour.inference.Generate(ask(), timeout=20)).text


# -- What the library is told.


def test_every_bound_is_told_to_the_library() -> None:
    from router.config import Settings

    said = dict(server_options(Settings()))
    streams = said["grpc.max_concurrent_streams"]
    assert streams < 500
    assert said["grpc.server.max_pending_requests_hard_limit"] <= 10 * streams
    for name in ("max_allowed_incoming_connections", "max_connection_idle_ms", "server_handshake_timeout_ms"):
        assert said[f"grpc.{name}"] > 0
