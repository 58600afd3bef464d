"""Addresses and limits of the server, reflection, and many calls on one connection: none is reset."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.config import Settings
from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.listen import (
    HANDSHAKE_MS,
    MIN_PING_INTERVAL_MS,
    ROOM_FOR_OTHERS,
    server_options,
    split_address,
)
from router.v1 import adapters_pb2, experiments_pb2, fleet_pb2, inference_pb2, inference_pb2_grpc
from tests.server.helpers import ROOT, Connect, Start, ask, details, failure, launch, long_stream, until

pytestmark = pytest.mark.slow


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


async def test_a_message_over_16_mib_is_refused_and_the_server_lives(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * (17 << 20))))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stubs.inference.Generate(ask())).text


async def test_an_input_over_the_cap_is_named(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * (1 << 20) + "y")))
    assert details(refused)["BadRequest"].field_violations[0].field == "input.text"


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


@pytest.mark.slow
@pytest.mark.long  # sleeps; the test above has the same bound, made shorter
@pytest.mark.timeout(90)
async def test_pings_through_a_silent_call(
    fakes: SimpleNamespace, server: ServerApp, connect: Connect
) -> None:
    stubs = connect(
        server,
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
    fakes.engine.hold()
    call = asyncio.ensure_future(stubs.inference.Generate(ask()))
    await asyncio.sleep(42)
    fakes.engine.resume()
    assert (await call).text


async def test_a_silent_connection_is_closed(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HANDSHAKE_MS == 5_000
    monkeypatch.setattr("router.server.listen.HANDSHAKE_MS", 500)
    server = await start_server()
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    start = time.monotonic()
    await asyncio.wait_for(reader.read(), 10)
    assert 0.3 < time.monotonic() - start < 2.5
    writer.close()


BUF = str(Path(sys.executable).with_name("buf"))


async def curl(server: ServerApp, tmp_path: Path, path: str, *arguments: str) -> str:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, f"http://{server.address}{path}", cwd=tmp_path, stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_every_method_is_listed(server: ServerApp, tmp_path: Path) -> None:
    ours = {
        f"{service.full_name}/{method.name}"
        for module in (inference_pb2, adapters_pb2, fleet_pb2, experiments_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    library = {
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/List",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
    for version in ("v1", "v1alpha"):
        arguments = ("--list-methods", "--reflect-protocol", f"grpc-{version}")
        listed = set((await curl(server, tmp_path, "", *arguments)).split())
        assert listed == ours | library


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


async def test_an_empty_call_gives_json(server: ServerApp, tmp_path: Path) -> None:
    out = await curl(server, tmp_path, "/router.v1.AdapterService/ListAdapters", "-d", "{}")
    assert [a["version"] for a in json.loads(out)["adapters"]] == ["2.0.0", "1.0.0"]


async def test_it_can_be_switched_off(start_server: Start, connect: Connect) -> None:
    stubs = connect(await start_server(reflection=False))
    for version in ("v1", "v1alpha"):
        method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        refused = await failure(stubs.channel.stream_stream(method)(iter([b""])))
        assert refused.code().name == "UNIMPLEMENTED"


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
