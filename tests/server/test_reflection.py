"""Rows 6 and 7: a client with no .proto at hand."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from router.server.app import ServerApp
from router.v1 import adapters_pb2, experiments_pb2, inference_pb2
from tests.server.helpers import Connect, Start, failure

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
        for module in (inference_pb2, adapters_pb2, experiments_pb2)
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
