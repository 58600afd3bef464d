"""How posts and batches travel to another process: one TCP connection for each stream.

Who connects proves that it knows the replica's secret, which is told where the replica was made, before
anything that it says is read; every message has a code under keys of that connection, so that nobody puts one
in between or plays one again. Nothing is encrypted: prompts and answers can be read on the way.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from router.errors import RouterError
from router.fleet.coding import decoded, encoded
from router.fleet.host import EngineHost
from router.fleet.link import LinkLost
from router.fleet.messages import Batch, Post

log = logging.getLogger(__name__)

NONCE, CODE = 32, 16  # bytes
HEAD = struct.Struct(f"!Q{CODE}s")  # length of the message, its code
LARGEST = 1 << 30  # bytes of a frame
HANDSHAKE_SECONDS = 5.0
STRANGERS = 64  # connections that have not proved anything yet; beyond them the oldest ends


class Torn(Exception):
    """The connection has ended, or what came is not what the other side sent."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a replica listens, and the secret that opens."""

    host: str
    port: int
    secret: bytes = field(repr=False)


class Wire:
    """Messages over a connection whose two sides have proved that they know one secret."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keys: Sequence[bytes]
    ) -> None:
        """`keys`: of what is sent and of what comes."""
        self._reader, self._writer = reader, writer
        self._out, self._in = keys
        self._sent, self._came = count(), count()

    def send(self, what: Any) -> None:
        """Returns at once."""
        body = encoded(what)
        self._writer.write(HEAD.pack(len(body), _code(self._out, next(self._sent), body)) + body)

    async def drained(self) -> None:
        """Until the other side has taken most of it. Raises Torn."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise Torn(str(error)) from error

    async def receive(self) -> Any:
        """The next value. Raises Torn."""
        try:
            length, code = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            if length > LARGEST:
                raise Torn(f"a message of {length} bytes")
            body = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Torn("the connection has ended") from error
        if not hmac.compare_digest(code, _code(self._in, next(self._came), body)):
            raise Torn("a message that the other side did not send")
        try:
            return decoded(body)
        except ValueError as error:
            raise Torn(str(error)) from error

    def close(self) -> None:
        """What was sent still goes out."""
        self._writer.close()


async def enter(door: Door) -> Wire:
    """The edge's side of a new connection. Raises LinkLost."""
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(door.host, door.port)
            try:
                theirs, mine = await reader.readexactly(NONCE), secrets.token_bytes(NONCE)
                both = theirs + mine
                writer.write(mine + _proof(door.secret, b"edge", both))
                if not hmac.compare_digest(
                    await reader.readexactly(NONCE), _proof(door.secret, b"replica", both)
                ):
                    raise LinkLost(f"another listens at {door.host}:{door.port}")
            except BaseException:
                writer.close()
                raise
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise LinkLost(f"no connection to {door.host}:{door.port} ({_said(error)})") from error
    return Wire(reader, writer, [_proof(door.secret, way, both) for way in (b"up", b"down")])


class Listener:
    """The replica's side: serves a host to whoever knows the secret."""

    def __init__(self, host: EngineHost) -> None:
        self._host, self._secret = host, secrets.token_bytes(NONCE)
        self._server: asyncio.Server | None = None
        self._strangers: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._serving: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}

    async def open(self, address: str) -> Door:
        """Listen at one address of this machine, at a port that is free."""
        self._server = await asyncio.start_server(self._serve, address, 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Door(host, port, self._secret)

    async def close(self) -> None:
        """Let nobody in any more; all streams end."""
        if self._server is not None:
            self._server.close()
        serving = dict(self._serving)
        for writer in serving:
            writer.close()
        await asyncio.gather(*filter(None, serving.values()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving[writer] = asyncio.current_task()
        try:
            if (wire := await self._let_in(reader, writer)) is not None:
                await self._follow(wire)
        except Torn as torn:
            log.info("an edge has left: %s", torn)
        finally:
            del self._serving[writer]
            writer.close()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Wire | None:
        if len(self._strangers) >= STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
        self._strangers[writer] = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                mine = secrets.token_bytes(NONCE)
                writer.write(mine)
                theirs, proof = await reader.readexactly(NONCE), await reader.readexactly(NONCE)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None
        finally:
            self._strangers.pop(writer, None)
        both = mine + theirs
        if not hmac.compare_digest(proof, _proof(self._secret, b"edge", both)):
            log.warning("somebody at %s does not know the secret", writer.get_extra_info("peername"))
            return None
        writer.write(_proof(self._secret, b"replica", both))
        return Wire(reader, writer, [_proof(self._secret, way, both) for way in (b"down", b"up")])

    async def _follow(self, wire: Wire) -> None:
        edge = await wire.receive()
        sending = asyncio.get_running_loop().create_task(self._send(wire, edge))
        try:
            while True:
                self._host.post(await wire.receive())
        finally:
            sending.cancel()

    async def _send(self, wire: Wire, edge: str) -> None:
        """The stream of an edge; a text at its end says why it has ended."""
        try:
            async with aclosing(self._host.batches(edge)) as batches:
                async for batch in batches:
                    wire.send(batch)
                    await wire.drained()
        except RouterError as error:
            wire.send(error.message)
        except Torn as torn:
            log.info("edge %s takes nothing any more: %s", edge, torn)
        finally:
            wire.close()


class Line:
    """The edge's side of its stream to one replica."""

    def __init__(self) -> None:
        self._wire: Wire | None = None

    def post(self, post: Post) -> None:
        """Send; whether it came is seen by the stream alone."""
        if self._wire is not None:
            self._wire.send(post)

    async def batches(self, door: Door, edge: str) -> AsyncGenerator[Batch, None]:
        """The stream of this edge. Raises LinkLost when it ends."""
        self._wire = wire = await enter(door)
        try:
            wire.send(edge)
            while True:
                batch: Batch | str = await wire.receive()
                if isinstance(batch, str):
                    raise LinkLost(batch)
                yield batch
        except Torn as torn:
            raise LinkLost(str(torn)) from torn
        finally:
            self._wire = None
            with suppress(OSError):
                wire.close()


def _proof(secret: bytes, purpose: bytes, both: bytes) -> bytes:
    return hashlib.blake2b(both, key=secret, digest_size=NONCE, person=purpose).digest()


def _code(key: bytes, number: int, body: bytes) -> bytes:
    found = hashlib.blake2b(number.to_bytes(8), key=key, digest_size=CODE)
    found.update(body)
    return found.digest()


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
