"""The HTTP port: who may call, TLS, clients that say nothing, addresses that cannot be had."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest
import trustme

from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.server import listen
from router.server.app import ServerApp
from router.server.listen import METADATA_BYTES
from tests.security.helpers import write_clients
from tests.server.http_helpers import Http, StartWeb, asking, connect, with_certificates


async def test_a_client_needs_its_token_and_sees_its_own_adapters(
    start_web: StartWeb, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path, adapters=["medical"], team=("infer",))
    server = await start_web(clients=clients.path)
    async with connect(server, clients.team) as client:
        names = [model.id async for model in client.models.list()]
        assert names == ["auto", "base", "medical", "medical@1.0.0"]
        assert (await client.chat.completions.create(**asking(model="medical"))).model == "medical@1.0.0"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**asking(model="legal"))
    async with connect(server, "lrk_nobody_nothing") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.chat.completions.create(**asking())
        assert refused.value.code == "token_invalid"
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_who_may_only_observe_generates_nothing(start_web: StartWeb, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, watcher=("observe",))
    async with connect(await start_web(clients=clients.path), clients.watcher) as client:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.chat.completions.create(**asking())
    assert refused.value.code == "role_missing"


async def test_a_quota_is_one_for_both_ways_in(start_web: StartWeb, http: Http, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, more="requests_per_minute = 1", team=("infer",))
    server = await start_web(clients=clients.path)
    async with connect(server, clients.team) as client:
        await client.chat.completions.create(**asking())
    answer = await http(server, headers={"authorization": f"Bearer {clients.team}"}).post(
        "/v1/chat/completions", json=asking()
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota")
    assert int(answer.headers["retry-after"]) >= 1


async def test_tls_shows_the_certificate_in_force(start_web: StartWeb, tmp_path: Path) -> None:
    authority, paths = trustme.CA(), [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]

    def issue(name: str) -> None:
        made = authority.issue_cert("127.0.0.1", common_name=name)
        paths[0].write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        paths[1].write_bytes(made.private_key_pem.bytes())

    issue("first")
    authority.cert_pem.write_to_path(str(paths[2]))
    server = await start_web(tls_cert=paths[0], tls_key=paths[1])
    context = ssl.create_default_context(cafile=str(paths[2]))

    async def shown() -> str:
        host, _, port = server.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        subject = dict(pair for part in writer.get_extra_info("peercert")["subject"] for pair in part)
        writer.close()
        await writer.wait_closed()
        return str(subject["commonName"])

    assert await shown() == "first"
    issue("second")
    for _ in range(100):
        if await shown() == "second":
            break
        await asyncio.sleep(0.05)
    assert await shown() == "second"
    async with httpx2.AsyncClient(verify=context, base_url=f"https://{server.http_address}") as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_certificate_says_who_calls(start_web: StartWeb, tmp_path: Path) -> None:
    server, team, nobody = await with_certificates(start_web, tmp_path, "infer", "medical")
    with pytest.raises(httpx2.TransportError):
        async with httpx2.AsyncClient(verify=nobody, base_url=f"https://{server.http_address}") as stranger:
            await stranger.get("/v1/models")
    async with httpx2.AsyncClient(verify=team, base_url=f"https://{server.http_address}") as client:
        named = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert named == ["auto", "base", "medical", "medical@1.0.0"]


async def test_who_says_nothing_is_hung_up_on(start_web: StartWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.2)
    server = await start_web()
    host, _, port = server.http_address.rpartition(":")
    silent, begun, again = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    again[1].write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await again[0].readuntil(b"}]}")
    for _, writer in (begun, again):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    for reader, writer in (silent, begun, again):
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_between_requests_there_is_time(start_web: StartWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.2)
    server = await start_web(engine=FakeEngine(step_seconds=0.02))
    async with connect(server) as client:
        asked = asking(max_tokens=30)
        await client.chat.completions.create(**asked, extra_body={"min_tokens": 30})  # longer than that
        await asyncio.sleep(0.4)
        await client.chat.completions.create(**asking())


async def test_a_body_that_does_not_come_holds_its_turn_for_a_while_only(
    start_web: StartWeb,
) -> None:
    server = await start_web(body_seconds=0.3)
    host, _, port = server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 408")
    writer.close()
    page = (await server.metrics.page())[0].decode()
    counted = [line for line in page.splitlines() if line.startswith("lora_router_requests_total{")]
    assert len(counted) == 1, counted
    assert 'code="CANCELLED"' in counted[0], "alerts on failures of the server count this"


async def test_a_taken_address_is_said(start_web: StartWeb) -> None:
    server = await start_web()
    with pytest.raises(ConfigError, match="--http-listen"):
        await listen.Listener(server.http_address, None).start(None)
    with pytest.raises(ConfigError, match="http_listen must be HOST:PORT"):
        await listen.Listener("nowhere", None).start(None)


async def answered(server: ServerApp, *sent: bytes) -> bytes:
    """All that a connection gets back, until the server hangs up."""
    host, _, port = server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    for part in sent:
        writer.write(part)
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Large: " + b"x" * 100_000 + b"\r\n\r\n",
        GET + b"".join(b"X-%d: x\r\n" % number for number in range(10_000)) + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GET + b"\r\n" + GET + b"X-Large: " + b"x" * 100_000 + b"\r\n\r\n",  # the second one
        b"\r\n" * 50_000,
    ],
    ids=["one header", "many headers", "path", "pipelined", "blank lines"],
)
async def test_a_head_of_100_kb_in_one_read_is_refused(start_web: StartWeb, head: bytes) -> None:
    answer = await answered(await start_web(), head)
    assert b"HTTP/1.1 400" in answer
    assert answer.count(b"HTTP/1.1 200") == head.startswith(GET + b"\r\n")


async def test_a_head_at_its_maximum_is_taken(start_web: StartWeb) -> None:
    head = GET + b"Connection: close\r\nX-Large: "
    head += b"x" * (METADATA_BYTES - len(head) - 4) + b"\r\n\r\n"
    assert (await answered(await start_web(), head)).startswith(b"HTTP/1.1 200")
    assert (await answered(await start_web(), head.replace(b"x\r", b"xx\r"))).startswith(b"HTTP/1.1 400")


async def test_a_large_body_in_one_read_with_its_head_is_no_large_head(start_web: StartWeb) -> None:
    body = json.dumps(asking(metadata={"x": "y" * 60}, user="u" * 200, max_tokens=1)).encode() + b" " * 50_000
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await answered(await start_web(), head + body)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked_first", [True, False])
async def test_two_lengths_of_one_body_are_refused(start_web: StartWeb, chunked_first: bool) -> None:
    lengths = [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 4\r\n"]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"".join(lengths if chunked_first else reversed(lengths))
    answer = await answered(await start_web(), head + b"\r\n0\r\n\r\n" + GET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1  # what follows is no request of its own


@pytest.mark.parametrize(
    "body", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
async def test_a_body_that_does_not_end_is_the_clients_fault(start_web: StartWeb, body: bytes) -> None:
    server = await start_web(body_seconds=0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = await answered(server, head + body)
    assert answer.startswith(b"HTTP/1.1 408")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], error["type"]) == ("body_incomplete", "invalid_request_error")


@pytest.mark.parametrize(
    ("verb", "path", "host", "status"),
    [
        ("GET", "/nothing", "localhost", 404),
        ("DELETE", "/v1/models", "localhost", 405),
        ("GET", "/v1/models", "evil.example", 403),
    ],
)
async def test_what_is_not_served_has_its_request_id(
    start_web: StartWeb, http: Http, verb: str, path: str, host: str, status: int
) -> None:
    client = http(await start_web())
    named = await client.request(verb, path, headers={"x-request-id": "mine", "host": host})
    assert (named.status_code, named.headers["x-request-id"]) == (status, "mine")
    unnamed = await client.request(verb, path, headers={"host": host})
    assert unnamed.headers["x-request-id"]
