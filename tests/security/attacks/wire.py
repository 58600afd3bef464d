"""HTTP/2 as an attacker writes it: frames by hand, since libraries refuse to break the protocol."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4  # a setting
CANCEL = (8).to_bytes(4, "big")
NAMES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 3: "FLOW_CONTROL", 7: "REFUSED_STREAM", 8: "CANCEL"}
NAMES |= {2: "INTERNAL", 11: "ENHANCE_YOUR_CALM", 13: "HTTP_1_1_REQUIRED"}
GENERATE = "/router.v1.InferenceService/Generate"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(said: dict[int, int] | None = None) -> bytes:
    """A SETTINGS frame with these values by number."""
    pairs = (key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in (said or {}).items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def block(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """A header block of a gRPC call: literals that change no table, so that every call has the same."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    fields += [("content-type", "application/grpc"), ("te", "trailers"), *more]
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(said: str) -> bytes:
    data, size = said.encode(), len(said)
    if size < 127:
        return bytes([size]) + data
    size, head = size - 127, bytes([127])
    while size >= 128:
        head, size = head + bytes([size % 128 + 128]), size // 128
    return head + bytes([size]) + data


def message(body: bytes, compressed: bool = False) -> bytes:
    """A gRPC message, with its five bytes of head."""
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from another address of this machine than the one that neighbours call from."""
    host, _, port = address.rpartition(":")
    here = ("127.0.0.2", 0) if host == "127.0.0.1" and sys.platform == "linux" else None
    return await asyncio.open_connection(host, int(port), limit=1 << 20, local_addr=here)


class Connection:
    """A connection to attack by. `seen` counts what the server said, by kind of frame and error."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen: Counter[str] = Counter()
        self.closed = asyncio.Event()
        self.greeted = asyncio.Event()
        self._reader, self.writer = reader, writer
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: str, said: dict[int, int] | None = None) -> Connection:
        """Connect, greet, and wait for the server's settings; raises OSError where it hangs up."""
        reader, writer = await connected(address)
        connection = cls(reader, writer)
        writer.write(PREFACE + settings(said))
        await asyncio.wait_for(connection.greeted.wait(), 10)
        if connection.closed.is_set():
            await connection.close()
            raise ConnectionResetError("hung up")
        return connection

    async def send(self, data: bytes) -> bool:
        """Write, with what the transport allows; False once the server has hung up."""
        if self.closed.is_set():
            return False
        self.writer.write(data)
        try:
            await self.writer.drain()
        except OSError:
            return False
        return True

    async def gone(self, seconds: float) -> bool:
        """Do nothing for so long; whether the server has hung up by then."""
        try:
            async with asyncio.timeout(seconds):
                await self.closed.wait()
        except TimeoutError:
            return False
        return True

    async def answers(self, number: int, seconds: float = 20) -> None:
        """Wait, at most so long, until so many calls have ended, or the server has hung up."""
        for _ in range(int(seconds / 0.02)):
            if self.seen["ended"] + self.seen["reset REFUSED_STREAM"] >= number or self.closed.is_set():
                return
            await asyncio.sleep(0.02)

    async def close(self) -> Counter[str]:
        """Hang up; returns what was seen."""
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        self.writer.close()
        return self.seen

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._saw(head[3], head[4], payload)
        except (OSError, asyncio.IncompleteReadError):
            self.seen["closed"] += 1
        finally:
            self.closed.set()
            self.greeted.set()

    def _saw(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.writer.write(frame(SETTINGS, ACK, 0))
            self.greeted.set()
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == HEADERS and flags & END_STREAM:
            self.seen["ended"] += 1
        elif kind == DATA:
            self.seen["bytes"] += len(payload)
        elif kind == RST_STREAM:
            self.seen[_name("reset", payload)] += 1
        elif kind == GOAWAY:
            self.seen["goodbye"] += 1


def _name(kind: str, payload: bytes) -> str:
    code = int.from_bytes(payload[:4], "big")
    return f"{kind} {NAMES.get(code, code)}"
