from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest

from router.engine.base import Delta, Finished
from router.engine.fake import FakeEngine
from router.fleet import wire
from router.fleet.host import EngineHost
from router.fleet.link import LinkLost
from router.fleet.messages import Batch, Post, Submit
from router.fleet.wire import Door, Line, Listener, Torn, Wire, enter
from tests.engine.contract import until
from tests.fleet.conftest import job


@pytest.fixture
async def served() -> AsyncIterator[tuple[EngineHost, Listener, Door]]:
    host = EngineHost(FakeEngine(step_seconds=0.001))
    host.start()
    listener = Listener(host)
    yield host, listener, await listener.open("127.0.0.1")
    await listener.close()
    host.close()


Served = tuple[EngineHost, Listener, Door]


async def test_a_job_goes_there_and_its_answer_comes_back(served: Served) -> None:
    line, text, number = Line(), "", 0
    async with aclosing(line.batches(served[2], "edge")) as stream:
        async for batch in stream:
            if batch.number == 0:
                line.post(Post("edge", 0, (Submit(5, job()),)))
            for event in batch.events:
                assert event.key == 5
                if isinstance(event.what, Delta):
                    text += event.what.text
                elif isinstance(event.what, Finished):
                    number = batch.number
            if number:
                break
    assert text == "[base] one two three"
    await until(lambda: not served[0].edges)  # an edge that leaves is gone at once


async def test_the_end_of_a_stream_says_why(served: Served) -> None:
    first, second = Line(), Line()
    async with aclosing(first.batches(served[2], "edge")) as stream:
        await anext(stream)
        with pytest.raises(LinkLost, match="has a stream already"):
            await anext(second.batches(served[2], "edge"))


async def test_a_post_without_a_stream_goes_nowhere() -> None:
    Line().post(Post("edge", 0))


async def test_who_does_not_know_the_secret_gets_nothing(served: Served) -> None:
    door = replace(served[2], secret=b"\x00" * 32)
    with pytest.raises(LinkLost, match="no connection"):
        await enter(door)
    assert served[0].edges == ()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, b"\x00" * 64])
async def test_strangers_are_sent_away(served: Served, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(served[2].host, served[2].port)
    writer.write(said)
    assert len(await asyncio.wait_for(reader.read(), 5)) == wire.NONCE  # what everybody is told, and the end
    await over(writer)


async def over(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_strangers_keep_no_edge_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STRANGERS", 2)
    strangers = [await asyncio.open_connection(served[2].host, served[2].port) for _ in range(3)]
    oldest, *_, newest = strangers
    assert len(await asyncio.wait_for(oldest[0].read(), 5)) <= wire.NONCE  # it has made room
    entered = await enter(served[2])
    assert len(await asyncio.wait_for(newest[0].readexactly(wire.NONCE), 5)) == wire.NONCE
    await over(entered._writer, *(writer for _, writer in strangers))


async def test_a_replica_that_does_not_know_the_secret_is_not_believed() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"n" * wire.NONCE)
        await reader.readexactly(2 * wire.NONCE)
        writer.write(b"p" * wire.NONCE)
        await over(writer)

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    door = Door("127.0.0.1", server.sockets[0].getsockname()[1], b"s" * 32)
    with pytest.raises(LinkLost, match="another listens"):
        await enter(door)
    server.close()


async def test_nobody_there_is_told(served: Served) -> None:
    await served[1].close()
    with pytest.raises(LinkLost, match="no connection"):
        await enter(served[2])


async def pair() -> tuple[Wire, asyncio.StreamWriter, asyncio.Server]:
    """A wire, and the other end of its connection as bytes; keys are known."""
    ends: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *end: ends.put_nowait(end), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    _, other = await ends.get()
    return Wire(reader, writer, [b"o" * 32, b"i" * 32]), other, server


def message(number: int, body: bytes, key: bytes = b"i" * 32) -> bytes:
    return wire.HEAD.pack(len(body), wire._code(key, number, body)) + body


@pytest.mark.parametrize(
    "frames",
    [
        [message(1, b"\xc0")],  # not the next one
        [message(0, b"\xc0"), message(0, b"\xc0")],  # played again
        [message(0, b"\xc0", b"x" * 32)],  # under another key
        [message(0, b"\xc0")[:-1] + b"\xc3"],  # changed on the way
        [message(0, b"\xc1")],  # no message
        [struct.pack("!Q16s", wire.LARGEST + 1, b"")],
        [b"\x00" * 10],
    ],
)
async def test_what_the_other_side_did_not_send_ends_the_stream(frames: list[bytes]) -> None:
    mine, other, server = await pair()
    other.write(b"".join(frames))
    other.close()
    for _ in frames[1:]:
        assert await asyncio.wait_for(mine.receive(), 5) is None
    with pytest.raises(Torn):
        await asyncio.wait_for(mine.receive(), 5)
    await over(mine._writer, other)
    server.close()


class Stuck:
    """A wire whose other side takes nothing until it is told to."""

    def __init__(self) -> None:
        self.sent: list[Batch] = []
        self.takes = asyncio.Event()

    def send(self, what: Batch) -> None:
        self.sent.append(what)

    async def drained(self) -> None:
        await self.takes.wait()

    def close(self) -> None:
        pass


async def test_what_a_slow_edge_does_not_take_is_joined(served: Served) -> None:
    host, listener, _ = served
    stuck = Stuck()
    sending = asyncio.create_task(listener._send(stuck, "edge"))  # type: ignore[arg-type]
    await until(lambda: bool(host.edges))
    host.post(Post("edge", 0, (Submit(1, job(min_tokens=60)),)))
    await until(lambda: host._engine.status().steps > 40)
    assert [batch.number for batch in stuck.sent] == [0]
    stuck.takes.set()
    await until(lambda: sum(len(batch.events) for batch in stuck.sent) == 51)
    assert len(stuck.sent[1].events) > 30
    sending.cancel()
