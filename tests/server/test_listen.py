"""Addresses and limits of the server, over gRPC and HTTP; reflection; many calls on one connection."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx2
import openai
import pytest
import trustme
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.server import listen
from router.server.app import ServerApp
from router.server.listen import (
    METADATA_BYTES,
    MIN_PING_INTERVAL_MS,
    ROOM_FOR_OTHERS,
    server_options,
    split_address,
)
from router.v1 import (
    adapters_pb2,
    experiments_pb2,
    feedback_pb2,
    fleet_pb2,
    inference_pb2,
    inference_pb2_grpc,
)
from tests.security.helpers import write_clients
from tests.server.helpers import ROOT, Connect, Start, ask, details, failure, launch, long_stream, until
from tests.server.http_helpers import Http, StartWeb, asking, connect, with_certificates


@pytest.mark.parametrize(
    ("listen", "parts"),
    [("127.0.0.1:50051", ("127.0.0.1", 50051)), ("[::1]:0", ("[::1]", 0)), ("localhost:1", ("localhost", 1))],
)
def test_addresses(listen: str, parts: tuple[str, int]) -> None:
    assert split_address(listen, "listen") == parts


@pytest.mark.parametrize(
    "listen", ["", "50051", ":50051", "::1:50051", "[::1:1", "h:", "h:x", "h:70000", "h:-1", "h:²"]
)
def test_bad_addresses_are_named(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen must be HOST:PORT"):
        split_address(listen, "listen")


async def test_the_port_is_not_shared(server: ServerApp, start_server: Start) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {re.escape(server.address)}.*another server"):
        await start_server(listen=server.address)


def test_every_option_is_one_that_grpc_knows() -> None:
    """An unknown option is ignored in silence; the names stand in the library as plain bytes."""
    library = Path(cygrpc.__file__).read_bytes()
    unknown = [name for name, _ in server_options(Settings()) if name.encode() not in library]
    assert not unknown


async def test_gzip_is_accepted(stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask("word " * 50), compression=grpc.Compression.Gzip)
    assert reply.usage.prompt_tokens == 250


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and no settings
PING = bytes([0, 0, 8, 6, *[0] * 13])
ACKNOWLEDGED, GOAWAY = (6, 1), (7, 0)  # type and flags of HTTP/2 frames


async def pinged(server: ServerApp, pings: int, every: float) -> list[tuple[int, int]]:
    """Frames that a connection without a call gets for so many pings, up to the last answer or the end."""
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    frames: list[tuple[int, int]] = []

    async def read() -> None:
        while frames.count(ACKNOWLEDGED) < pings and GOAWAY not in frames:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            frames.append((head[3], head[4]))

    writer.write(PREFACE)
    reading = asyncio.create_task(read())
    for _ in range(pings):
        await asyncio.wait({reading}, timeout=every)
        if not reading.done():  # a write after the end would break what is still to be read
            writer.write(PING)
    await asyncio.wait_for(reading, 10)
    writer.close()
    return frames


@pytest.mark.parametrize(("least", "ends"), [(20, False), (300_000, True)])
async def test_pings_as_often_as_allowed_and_more_often(
    least: int, ends: bool, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library's own bound, 5 minutes, a few pings would end the connection."""
    assert MIN_PING_INTERVAL_MS == 5_000
    monkeypatch.setattr("router.server.listen.MIN_PING_INTERVAL_MS", least)
    frames = await pinged(await start_server(), 6, 0.1)
    assert (GOAWAY in frames) == ends


BUF = str(Path(sys.executable).with_name("buf"))


async def curl(server: ServerApp, tmp_path: Path, path: str, *arguments: str) -> str:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, f"http://{server.address}{path}", cwd=tmp_path, stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.slow
async def test_every_method_is_listed(server: ServerApp, tmp_path: Path) -> None:
    ours = {
        f"{service.full_name}/{method.name}"
        for module in (inference_pb2, adapters_pb2, fleet_pb2, experiments_pb2, feedback_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    library = {
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/List",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
    arguments = ("--list-methods", "--reflect-protocol", "grpc-v1alpha")
    assert set((await curl(server, tmp_path, "", *arguments)).split()) == ours | library


@pytest.mark.slow
async def test_an_answer_is_streamed(server: ServerApp, tmp_path: Path) -> None:
    body = json.dumps({"input": {"text": "a medical question"}})
    path = "/router.v1.InferenceService/StreamGenerate"
    out = await curl(server, tmp_path, path, "-d", body)
    decoder, events, rest = json.JSONDecoder(), [], out.strip()
    while rest:
        event, end = decoder.raw_decode(rest)
        events.append(event)
        rest = rest[end:].lstrip()
    assert events[0]["started"]["decision"]["adapter"] == "adapters/medical/versions/1.0.0"
    assert "".join(e["delta"]["text"] for e in events[1:-1]).endswith(" a medical question")
    assert events[-1]["finished"]["reason"] == "FINISH_REASON_STOP"


LIMIT = Settings().max_running + Settings().max_queue
EXAMPLES = ROOT / "examples"


async def outcome(call: grpc.aio.UnaryStreamCall) -> str:
    """OK, or the reason of a refusal that says when to try again; else the status as it came."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE or "grpc-status-details-bin" not in dict(
            error.trailing_metadata()
        ):
            return f"{error.code().name}: {error.details()}"
        found = details(error)
        return str(found["ErrorInfo"].reason if "RetryInfo" in found else "no RetryInfo")
    return "OK"


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "connections"), [(1000, 1), pytest.param(400, 4, marks=pytest.mark.long)])
async def test_streams_at_once_on_a_connection(calls: int, connections: int) -> None:
    process, address = await launch("--step", "0.02")
    local = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options=local) for _ in range(connections)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    streams = [stub.StreamGenerate(long_stream(10)) for stub in stubs for _ in range(calls)]
    ends = Counter(await asyncio.gather(*map(outcome, streams)))
    for channel in channels:
        await channel.close()
    process.kill()
    await process.communicate()
    assert set(ends) <= {"OK", "QUEUE_FULL"}, ends
    assert ends["OK"] >= min(calls * connections, LIMIT)


@pytest.mark.slow
async def test_a_full_connection_still_carries_health_and_refusals(
    start_server: Start, fakes: object, connect: Connect
) -> None:
    fakes.engine.hold()  # type: ignore[attr-defined]
    server = await start_server(**vars(fakes))
    stubs = connect(server)
    held = [stubs.inference.StreamGenerate(long_stream(2)) for _ in range(LIMIT)]
    await until(lambda: server.admission.in_flight == LIMIT, 10)
    refused = await failure(stubs.inference.Generate(ask(), timeout=5))
    assert details(refused)["ErrorInfo"].reason == "QUEUE_FULL"
    health = health_pb2_grpc.HealthStub(stubs.channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(ROOM_FOR_OTHERS - 1)]
    for watch in watches:
        assert (await anext(aiter(watch))).status == 1
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
    fakes.engine.resume()  # type: ignore[attr-defined]
    assert Counter(await asyncio.gather(*map(outcome, held))) == {"OK": LIMIT}
    for watch in watches:
        watch.cancel()


MANY = """
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const [, , address, root, calls] = process.argv;
const files = loader.loadSync('router/v1/inference.proto', {includeDirs: [root]});
const {InferenceService} = grpc.loadPackageDefinition(files).router.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());
const sampling = {maxTokens: 10, minTokens: 10};
const one = () => new Promise(resolve => {
  const call = client.streamGenerate({input: {text: 'one two'}, sampling});
  call.on('data', () => {});
  call.on('end', () => resolve('OK'));
  call.on('error', error => {
    const rich = error.metadata.get('grpc-status-details-bin').join();
    resolve(rich.includes('QUEUE_FULL') && rich.includes('RetryInfo') ? 'QUEUE_FULL' : String(error));
  });
});
Promise.all(Array.from({length: Number(calls)}, one)).then(ends => {
  const counts = {};
  for (const end of ends) counts[end] = (counts[end] || 0) + 1;
  console.log(JSON.stringify(counts));
  process.exit(0);
});
"""


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.timeout(300)
async def test_a_node_client_with_many_streams(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm")
    shutil.copy(EXAMPLES / "node" / "package.json", tmp_path)
    (tmp_path / "many.cjs").write_text(MANY)
    install = await asyncio.create_subprocess_exec(
        *(npm, "install", "--prefer-offline", "--no-audit", "--no-fund"),
        cwd=tmp_path,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert await install.communicate()
    assert install.returncode == 0
    process, address = await launch("--step", "0.02")
    command = ("node", "many.cjs", address, str(ROOT / "proto"), "1000")
    node = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE)
    ends = json.loads((await node.communicate())[0])
    assert set(ends) <= {"OK", "QUEUE_FULL"}, ends
    assert ends["OK"] >= LIMIT
    process.kill()
    await process.communicate()


# -- The HTTP port: who may call, TLS, silent clients, addresses that cannot be had.


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
        assert refused.value.code == "invalid_api_key"
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
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
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


@pytest.mark.parametrize(
    "body", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
async def test_a_body_that_does_not_end_is_the_clients_fault(
    start_web: StartWeb, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 0.3)
    server = await start_web()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = await answered(server, head + body)
    assert answer.startswith(b"HTTP/1.1 408")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], error["type"]) == ("body_incomplete", "invalid_request_error")
    page = generate_latest(server.metrics.registry).decode()
    counted = [line for line in page.splitlines() if line.startswith("lora_router_requests_total{")]
    assert len(counted) == 1, counted
    assert 'code="CANCELLED"' in counted[0], "alerts on failures of the server count this"


async def test_a_taken_address_is_said(start_web: StartWeb) -> None:
    server = await start_web()
    with pytest.raises(ConfigError, match="--set http_listen=HOST:PORT"):
        await listen.Listener(server.http_address, None).start(None)
    with pytest.raises(ConfigError, match="http_listen must be HOST:PORT"):
        await listen.Listener("nowhere", None).start(None)


async def answered(server: ServerApp, *sent: bytes, at: str = "", seconds: float = 10) -> bytes:
    """All that a connection gets back, until the server hangs up."""
    host, _, port = (at or server.http_address).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    for part in sent:
        writer.write(part)
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), seconds)
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


CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n"


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks of that size."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def chat_of(size: int) -> bytes:
    """A chat of so many bytes."""
    return json.dumps(asking(max_tokens=1)).encode().ljust(size)


@pytest.mark.parametrize(
    ("size", "each"), [(1_024, 1), (10_000, 64), (1_000_000, 1_000)], ids=["tiny", "small", "1 MB"]
)
async def test_a_body_in_chunks_is_read(start_web: StartWeb, size: int, each: int) -> None:
    sent = CHAT + CLOSE + CHUNKED + chunked(chat_of(size), each)
    assert (await answered(await start_web(), sent)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("listener", ["http_address", "metrics_address"])
@pytest.mark.parametrize(("size", "each"), [(1_100, 1), (200_000, 32)], ids=["one byte", "32 bytes"])
async def test_a_body_in_tiny_chunks_is_refused(
    start_web: StartWeb, listener: str, size: int, each: int
) -> None:
    """On the port of metrics no route reads the body; what comes after the answer is bounded there, too."""
    server = await start_web(metrics_listen="127.0.0.1:0")
    sent = CHAT + CHUNKED + chunked(chat_of(size), each)
    answer = await answered(server, sent + GET + b"\r\n", at=getattr(server, listener))
    if listener == "http_address":
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"the body has more than 1024 chunks of less than 64 bytes on average" in answer
    else:
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))  # whichever comes first
    assert answer.count(b"HTTP/1.1 ") == 1  # and the connection ends


async def test_a_body_over_tls_is_read(start_web: StartWeb, tmp_path: Path) -> None:
    server, team, _ = await with_certificates(start_web, tmp_path, "infer", "medical")
    async with httpx2.AsyncClient(verify=team, base_url=f"https://{server.http_address}") as client:
        body = chat_of(1_000_000)
        whole = await client.post("/v1/chat/completions", content=body, headers=AS_JSON)
        assert whole.status_code == 200, whole.text
        parts = (body[at : at + 1_000] for at in range(0, len(body), 1_000))
        sent = await client.post("/v1/chat/completions", content=aiter_of(parts), headers=AS_JSON)
        assert sent.status_code == 200, sent.text


AS_JSON = {"content-type": "application/json"}


async def aiter_of(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """So that a client sends them in chunks."""
    for part in parts:
        yield part


async def test_pipelined_requests_are_answered_in_their_order(start_web: StartWeb) -> None:
    heads = [b"GET /nothing/%d HTTP/1.1\r\nHost: localhost\r\n" % number for number in range(50)]
    answer = await answered(await start_web(), b"\r\n".join(heads) + CLOSE + b"\r\n")
    assert re.findall(rb"/nothing/(\d+) is not served", answer) == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("listener", ["http_address", "metrics_address"])
@pytest.mark.parametrize("trailer", [False, True], ids=["headers", "trailer"])
async def test_a_request_has_at_most_100_headers(start_web: StartWeb, listener: str, trailer: bool) -> None:
    server = await start_web(metrics_listen="127.0.0.1:0")

    async def status(number: int) -> bytes:
        head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if trailer:
            sent = head + CHUNKED + b"0\r\n" + b"a: b\r\n" * number + b"\r\n"
        else:
            sent = head + b"a: b\r\n" * (number - 2) + b"\r\n"
        answer = await answered(server, sent, at=getattr(server, listener))
        return answer[9:12] if b"more than 100 headers" not in answer else b"too many"

    assert await status(100) == b"404"
    assert await status(102) == b"too many"


async def test_what_many_chunks_cost_keeps_nobody_waiting(
    start_web: StartWeb, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bound of turns, the chunks of each read are parsed before anything else happens."""
    monkeypatch.setattr(listen, "FREE_CHUNKS", 1_000_000)
    server = await start_web()
    sent = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + chunked(b"x" * 200_000, 1)
    flood = asyncio.create_task(answered(server, sent + GET + CLOSE + b"\r\n", seconds=60))
    client = http(server)
    for _ in range(10):
        assert (await client.get("/health")).status_code == 200
    assert not flood.done()
    assert (await flood).count(b"HTTP/1.1 ") == 2


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
