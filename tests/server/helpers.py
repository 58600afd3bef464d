"""Requests, readers of rich errors, and server processes on the fake engine."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from router.access.access import Access, Credentials
from router.access.clients import Client, Role
from router.server.app import ServerApp
from router.server.call import Call, Endpoint
from router.server.interceptors import bounded
from router.server.policy import GENERATE, INFER, Policy
from router.v1 import inference_pb2 as pb

ROOT = Path(__file__).parents[2]
Start = Callable[..., Awaitable[ServerApp]]
Connect = Callable[..., SimpleNamespace]


def ask(text: str = "one two three", **fields: Any) -> pb.GenerateRequest:
    """A GenerateRequest; `sampling` and `routing` as dicts."""
    return pb.GenerateRequest(input=pb.Input(text=text), **fields)


def stream(text: str = "one two three", **fields: Any) -> pb.StreamGenerateRequest:
    """The same for a stream."""
    return pb.StreamGenerateRequest(input=pb.Input(text=text), **fields)


def long_stream(tokens: int = 500, text: str = "one two three") -> pb.StreamGenerateRequest:
    """A stream of so many tokens, one a step."""
    return stream(text, sampling={"max_tokens": tokens, "min_tokens": tokens})


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (messages(call) if hasattr(call, "__aiter__") else call)
    return caught.value


def call_of(method: str = "/S/M", policy: Policy = GENERATE, **fields: Any) -> Call:
    """A call of no transport."""
    return Call(Endpoint(method, policy, lambda request, call: None), "r", **fields)


@asynccontextmanager
async def held(
    access: Access, credentials: Credentials, method: str, client: Client, lasts: bool = False
) -> AsyncIterator[None]:
    """A running call of that client, which ends as `access` says."""
    call = call_of(method, INFER)
    async with bounded(call, None):
        with access.holding(credentials, Role.INFER, method, client, call.end, lasts):
            yield


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """google.rpc details by message name."""
    raw = next(v for k, v in error.trailing_metadata() if k == "grpc-status-details-bin")
    found = {}
    for packed in status_pb2.Status.FromString(raw).details:
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        packed.Unpack(found[name])
    return found


async def messages(call: Any) -> list[Any]:
    """All messages of a stream."""
    return [message async for message in call]


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for `condition`; fails after `seconds`."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("waited in vain")


async def settled(server: ServerApp) -> bool:
    """Nothing runs any more, within 30 s."""
    for _ in range(6000):
        idle = not server.engine.status().busy and server.admission.in_flight == 0
        if idle and all(info.leases == 0 for info in server.registry.list()):
            return True
        await asyncio.sleep(0.005)
    return False


async def launch(*arguments: str) -> tuple[Process, str]:
    """A server process and its address ('' if it did not come up)."""
    command = (sys.executable, "-m", "tests.server.serve_fake", *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()
