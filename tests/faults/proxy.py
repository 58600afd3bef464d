"""A proxy between a client and a server that does what networks do: late, silent, cut, half closed."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK = 1 << 16
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: the other side gets RST


class Proxy:
    """Carries bytes both ways. `delay`: seconds that each piece is late; `silent`: nothing is carried."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay, self.silent, self.address = 0.0, False, ""

    async def _carry(self, near: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        far, server = await asyncio.open_connection(self._host, int(self._port))
        self._pairs.add((client, server))
        for reader, writer in ((near, server), (far, client)):
            self._tasks.add(asyncio.ensure_future(self._one_way(reader, writer)))

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await asyncio.sleep(self.delay)
                if not self.silent:
                    writer.write(data)
                    await writer.drain()

    def reset(self) -> None:
        """RST to both sides of every connection."""
        for writer in self._writers():
            there = writer.get_extra_info("socket")
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    def half_close(self) -> None:
        """The server is told that the client will send no more; what it sends is carried on."""
        for _, server in self._pairs:
            server.write_eof()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [writer for pair in self._pairs for writer in pair]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers():
            writer.transport.abort()


@asynccontextmanager
async def through(target: str) -> AsyncIterator[Proxy]:
    """A proxy to that address, on `address`."""
    proxy = Proxy(target)
    listener = await asyncio.start_server(proxy._carry, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()
