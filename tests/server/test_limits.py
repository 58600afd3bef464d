"""Rows 18 to 20: sizes, compression, keepalive."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import grpc
import pytest

from router.server.app import ServerApp
from tests.server.helpers import Connect, ask, details, failure


async def test_a_message_over_16_mib_is_refused_and_the_server_lives(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * (17 << 20))))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stubs.inference.Generate(ask())).text


async def test_an_input_over_the_cap_is_named(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * (1 << 20) + "y")))
    assert details(refused)["BadRequest"].field_violations[0].field == "input.text"


async def test_a_prompt_over_the_context_is_never_cut(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * 5000)))
    info = details(refused)["ErrorInfo"]
    assert (refused.code().name, info.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert (info.metadata["limit"], info.metadata["got"]) == ("4096", "5001")


async def test_gzip_is_accepted(stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask("word " * 50), compression=grpc.Compression.Gzip)
    assert reply.usage.prompt_tokens == 250


@pytest.mark.slow
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


@pytest.mark.slow
async def test_a_silent_connection_is_closed(server: ServerApp) -> None:
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    start = time.monotonic()
    await asyncio.wait_for(reader.read(), 10)
    assert 3 < time.monotonic() - start < 7
    writer.close()
