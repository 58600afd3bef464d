"""Hostile clients over HTTP: bodies without end, streams nobody reads, idle connections by the thousand."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress

import psutil
import pytest

from router.engine.fake import FakeEngine
from tests.server.helpers import until
from tests.server.http_helpers import Http, StartWeb, asking

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PIECE = b"x" * (64 << 10)
GIGABYTE = 1 << 30
IDLE = """
import resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
for _ in range(count):
    held.append(socket.create_connection((host, port), 30))
print(len(held), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "in chunks"])
async def test_a_body_of_a_gigabyte_is_refused_and_not_read(start_web: StartWeb, chunked: bool) -> None:
    server = await start_web(max_body_bytes=1 << 20)
    host, _, port = server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % GIGABYTE
    writer.write(HEAD + length + b"\r\n\r\n")
    piece = b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    answer, sent = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n")), 0
    with suppress(ConnectionError):
        while not answer.done() and sent < GIGABYTE:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 5)
            sent += len(PIECE)
            await asyncio.sleep(0)
    assert (await asyncio.wait_for(answer, 5)).startswith(b"HTTP/1.1 413")
    assert sent < 32 << 20  # what buffers on the way hold
    writer.transport.abort()


async def test_streams_that_break_leave_no_row(start_web: StartWeb, http: Http) -> None:
    engine = FakeEngine(step_seconds=0.01)
    server = await start_web(engine=engine)
    host, _, port = server.http_address.rpartition(":")
    body = json.dumps(asking(stream=True, max_tokens=400, min_tokens=400)).encode()

    async def broken() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(b"data: ")
        writer.transport.abort()

    await asyncio.gather(*(broken() for _ in range(30)))
    await until(lambda: not engine.status().running and not engine.status().waiting, 10)
    assert (await http(server).post("/v1/chat/completions", json=asking())).status_code == 200


@pytest.mark.long
async def test_ten_thousand_idle_connections(start_web: StartWeb, http: Http) -> None:
    server = await start_web()
    inside = http(server)
    assert (await inside.get("/v1/models")).status_code == 200
    before = psutil.Process().memory_info().rss
    host, _, port = server.http_address.rpartition(":")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IDLE, host, port, "10000", stdin=PIPE, stdout=PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), 120) == b"10000\n"
        answer = await asyncio.wait_for(inside.post("/v1/chat/completions", json=asking()), 10)
        assert answer.status_code == 200
        assert psutil.Process().memory_info().rss - before < 200 << 20
    finally:
        child.stdin.close()
        await child.wait()
    await asyncio.sleep(1)  # theirs are closed
    assert (await http(server).get("/v1/models")).status_code == 200
