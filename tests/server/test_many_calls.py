"""Many calls on one connection: each is answered, or refused in words; none is reset."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.config import Settings
from router.server.listen import ROOM_FOR_OTHERS
from router.v1 import inference_pb2_grpc
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, until
from tests.server.test_drain import launch

LIMIT = Settings().max_running + Settings().max_queue
EXAMPLES = Path(__file__).parents[2] / "examples"


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


@pytest.mark.parametrize(("calls", "connections"), [(250, 1), (1000, 1), (400, 4)])
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
    await until(lambda: server.lifecycle.in_flight == LIMIT, 10)
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
        *(npm, "install", "--no-audit", "--no-fund"), cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    assert await install.communicate()
    assert install.returncode == 0
    process, address = await launch("--step", "0.02")
    for calls in (250, 1000):
        command = ("node", "many.cjs", address, str(EXAMPLES.parent / "proto"), str(calls))
        node = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE)
        ends = json.loads((await node.communicate())[0])
        assert set(ends) <= {"OK", "QUEUE_FULL"}, ends
        assert ends["OK"] >= min(calls, LIMIT)
    process.kill()
    await process.communicate()
