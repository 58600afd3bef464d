"""The way from an edge to one replica: EngineService over gRPC."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from router.errors import ConfigError
from router.replicas.messages import MOST_REPLY, MOST_REQUEST, check_protocol
from router.v1 import engine_pb2 as pb
from router.v1.engine_pb2_grpc import EngineServiceStub

START_SECONDS = 600.0  # until a base is loaded
FRAME = 8  # bytes at most around a command in its message
OPTIONS = (
    ("grpc.max_receive_message_length", MOST_REPLY),
    ("grpc.max_send_message_length", MOST_REQUEST),
    ("grpc.use_local_subchannel_pool", 1),  # a Hello that waits must not hold up tokens
    ("grpc.enable_http_proxy", 0),  # a proxy for the web is no way to a replica
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.http2.bdp_probe", 0),  # a ping for each burst of tokens; they need no larger window
)


class LinkLost(Exception):
    """The replica cannot be reached, or has ended. The text says why."""


@dataclass(frozen=True, slots=True)
class Security:
    """How an edge and its replicas know each other. Without `ca` connections are plain text."""

    secret: str = field(default="", repr=False)
    ca: Path | None = None  # of the replicas' certificates
    cert: Path | None = None  # of this edge, for replicas that ask for one
    key: Path | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call brings."""
        return (("authorization", f"Bearer {self.secret}"),) if self.secret else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for plain text. Raises ConfigError for files that cannot be read."""
        if self.ca is None:
            return None
        try:
            files = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)]
        except OSError as error:
            raise ConfigError(f"TLS of replicas cannot read {error.filename}: {error.strerror}") from None
        return grpc.ssl_channel_credentials(*files)


class Outbox:
    """Commands for one stream, written together as far as a message may have them."""

    def __init__(self) -> None:
        self._commands: deque[pb.EngineCommand] = deque()
        self._filled = asyncio.Event()

    def add(self, commands: Iterable[pb.EngineCommand]) -> None:
        """Commands to write; none: a sign of life."""
        self._commands.extend(commands)
        self._filled.set()

    async def write(self, call: Any, edge: str) -> None:
        """Write what comes, until the call ends, which its reader sees."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.write(pb.AttachRequest(edge=edge))
            while True:
                await self._filled.wait()
                request = self._taken()
                if not self._commands:
                    self._filled.clear()
                await call.write(request)

    def _taken(self) -> pb.AttachRequest:
        """The next commands, one at least, of together no more bytes than a message may have."""
        request, size = pb.AttachRequest(), 0
        while self._commands:
            size += self._commands[0].ByteSize() + FRAME
            if request.commands and size > MOST_REQUEST:
                break
            request.commands.append(self._commands.popleft())
        return request


class Link:
    """The way to a replica at `address`, which somebody else starts and ends.

    What may block is called from worker threads, the rest on the edge's event loop.
    """

    def __init__(
        self,
        name: str,
        address: str,
        security: Security,
        start_seconds: float = START_SECONDS,
        tls_name: str = "",
    ) -> None:
        """`tls_name` is the name in the replica's certificate, where the address has another."""
        self.name, self.address, self._security, self._start_seconds = name, address, security, start_seconds
        self._options = (*OPTIONS, *([("grpc.ssl_target_name_override", tls_name)] if tls_name else []))
        self._outbox: Outbox | None = None  # of the stream

    def start(self) -> pb.HelloResponse:
        """What the replica there is; blocks until its base is loaded.

        Raises LinkLost, or ConfigError where trying again changes nothing: the secret or the protocol is not
        that of this edge.
        """
        credentials = self._security.credentials()
        if credentials is None:
            channel = grpc.insecure_channel(self.address, self._options)
        else:
            channel = grpc.secure_channel(self.address, credentials, self._options)
        with channel:
            stub: Any = EngineServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                hello: pb.HelloResponse = stub.Hello(
                    pb.HelloRequest(), timeout=self._start_seconds, metadata=self._security.metadata
                )
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    text = f"replica {self.name} does not accept this edge: {error.details()}"
                    raise ConfigError(f"{text} (replica_secret)") from None
                raise LinkLost(_why(error)) from None
        check_protocol(self.name, hello)
        return hello

    def send(self, *commands: pb.EngineCommand) -> None:
        """Send commands, or with none a sign of life; returns at once. Only the stream shows what came."""
        if self._outbox is not None:
            self._outbox.add(commands)

    async def batches(self, edge: str) -> AsyncGenerator[pb.AttachResponse, None]:
        """The stream of this edge. Raises LinkLost when it ends, whatever ended it."""
        outbox = self._outbox = Outbox()
        async with self._channel() as channel:
            stub: Any = EngineServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Attach(metadata=self._security.metadata)
            writing = asyncio.get_running_loop().create_task(outbox.write(call, edge))
            try:
                async for batch in call:
                    yield batch
                raise LinkLost("the replica ended the stream")
            except grpc.RpcError as error:
                raise LinkLost(_why(error)) from None
            finally:
                self._outbox = None
                writing.cancel()
                call.cancel()
                await asyncio.wait((writing,))

    def kill(self) -> None:
        """End the replica at once, though it hangs; blocks. Does nothing where others start it."""

    def close(self) -> None:
        """End the replica, or leave one that is not this edge's; blocks."""

    def _channel(self) -> grpc.aio.Channel:
        credentials = self._security.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, self._options)
        return grpc.aio.secure_channel(self.address, credentials, self._options)


def _why(error: grpc.RpcError) -> str:
    return (error.details() or "").partition("\n")[0] or error.code().name
