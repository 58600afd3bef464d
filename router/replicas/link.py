"""The way from an edge to one replica: EngineService over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc

from router.engine.base import AdapterArtifact
from router.errors import ConfigError
from router.replicas.messages import MOST_MESSAGE, Hello, check_protocol, hello_of, weights
from router.v1 import engine_pb2 as pb
from router.v1.engine_pb2_grpc import EngineServiceStub

START_SECONDS = 600.0  # until a base is loaded
OPTIONS = (
    ("grpc.max_receive_message_length", MOST_MESSAGE),
    ("grpc.max_send_message_length", MOST_MESSAGE),
    ("grpc.use_local_subchannel_pool", 1),  # weights must not hold up tokens: connections of their own
    ("grpc.enable_http_proxy", 0),  # a proxy for the web is no way to a replica
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.http2.bdp_probe", 0),  # a ping for each burst of tokens; they need no larger window
)


class LinkLost(Exception):
    """The replica cannot be reached, or has ended. The text says why."""


class Link(Protocol):
    """One replica. What may block is called from worker threads, the rest on the edge's event loop."""

    @property
    def name(self) -> str:
        """For people: in logs and in errors."""
        ...

    def start(self) -> Hello:
        """Start the replica, or find the one that is still there, with its base loaded; blocks.

        Raises LinkLost, or ConfigError where trying again changes nothing.
        """
        ...

    def send(self, request: pb.AttachRequest) -> None:
        """Send; returns at once. Whether it came is seen by the stream alone."""
        ...

    def batches(self, edge: str) -> AsyncGenerator[pb.AttachResponse, None]:
        """The stream of this edge. Raises LinkLost when it ends, whatever ended it."""
        ...

    async def put_weights(self, artifact: AdapterArtifact) -> None:
        """Upload an adapter. Raises LinkLost."""
        ...

    def kill(self) -> None:
        """End the replica at once, though it hangs; blocks. The next `start` makes another."""
        ...

    def close(self) -> None:
        """End the replica, or leave one that is not this edge's; blocks."""
        ...


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


class GrpcLink:
    """The way to a replica at `address`, which somebody else starts and ends."""

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
        self._requests: asyncio.Queue[pb.AttachRequest] | None = None

    def start(self) -> Hello:
        """What the replica there is; waits until its base is loaded.

        Raises ConfigError where the secret or the protocol is not that of this edge.
        """
        credentials = self._security.credentials()
        if credentials is None:
            channel = grpc.insecure_channel(self.address, self._options)
        else:
            channel = grpc.secure_channel(self.address, credentials, self._options)
        with channel:
            stub: Any = EngineServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                said = stub.Hello(
                    pb.HelloRequest(), timeout=self._start_seconds, metadata=self._security.metadata
                )
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    text = f"replica {self.name} does not accept this edge: {error.details()}"
                    raise ConfigError(f"{text} (replica_secret)") from None
                raise LinkLost(_why(error)) from None
        hello = hello_of(said)
        check_protocol(self.name, hello)
        return hello

    def send(self, request: pb.AttachRequest) -> None:
        """One task writes: gRPC takes one message at a time."""
        if self._requests is not None:
            self._requests.put_nowait(request)

    async def batches(self, edge: str) -> AsyncGenerator[pb.AttachResponse, None]:
        """One stream of the replica."""
        requests = self._requests = asyncio.Queue()
        async with self._channel() as channel:
            stub: Any = EngineServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Attach(metadata=self._security.metadata)
            writing = asyncio.get_running_loop().create_task(_write(call, edge, requests))
            try:
                async for batch in call:
                    yield batch
                raise LinkLost("the replica ended the stream")
            except grpc.RpcError as error:
                raise LinkLost(_why(error)) from None
            finally:
                self._requests = None
                writing.cancel()
                call.cancel()
                await asyncio.wait((writing,))

    async def put_weights(self, artifact: AdapterArtifact) -> None:
        """Over a connection of its own."""
        async with self._channel() as channel:
            stub: Any = EngineServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                await stub.PutWeights(weights(artifact), metadata=self._security.metadata)
            except grpc.RpcError as error:
                raise LinkLost(_why(error)) from None

    def kill(self) -> None:
        """It is not this edge's to end."""

    def close(self) -> None:
        """It goes on for others."""

    def _channel(self) -> grpc.aio.Channel:
        credentials = self._security.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, self._options)
        return grpc.aio.secure_channel(self.address, credentials, self._options)


async def _write(call: Any, edge: str, requests: asyncio.Queue[pb.AttachRequest]) -> None:
    """Write what is asked, and what waits meanwhile as one message. A call that has ended says so itself."""
    with suppress(grpc.RpcError, asyncio.InvalidStateError):
        await call.write(pb.AttachRequest(edge=edge))
        while True:
            request = await requests.get()
            while not requests.empty():
                request.commands.extend(requests.get_nowait().commands)
            await call.write(request)


def _why(error: grpc.RpcError) -> str:
    return (error.details() or "").partition("\n")[0] or error.code().name
