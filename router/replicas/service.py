"""A replica's gRPC server: EngineService over a host."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from router.errors import RouterError, Unavailable
from router.replicas.host import EngineHost, Session
from router.replicas.messages import MOST_MESSAGE, Upload, hello_message
from router.v1 import engine_pb2 as pb
from router.v1.engine_pb2_grpc import EngineServiceServicer, add_EngineServiceServicer_to_server

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MOST_MESSAGE),
    ("grpc.max_send_message_length", MOST_MESSAGE),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class EngineService(EngineServiceServicer):
    """The methods of `proto/router/v1/engine.proto`, for callers that know the secret."""

    def __init__(self, host: EngineHost, secret: str = "") -> None:
        """Without a `secret` everybody who can connect may call, which TLS with a CA for clients decides."""
        self._host, self._secret = host, f"Bearer {secret}".encode() if secret else b""
        self.loaded = asyncio.Event()  # set when the host has started

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service."""
        add_EngineServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        """What this replica is."""
        await self._check(context)
        await self.loaded.wait()
        if self._host.draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the replica is stopping")
        return hello_message(self._host.hello)

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        """The stream of one edge."""
        await self._check(context)
        await self.loaded.wait()
        first = await anext(aiter(requests))
        try:
            session = self._host.open(first.edge)
            self._host.receive(session, first)
            reading = asyncio.get_running_loop().create_task(self._read(session, requests))
            try:
                async with aclosing(self._host.batches(session)) as batches:
                    async for batch in batches:
                        yield batch
            finally:
                reading.cancel()
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)

    async def PutWeights(
        self, requests: AsyncIterator[pb.PutWeightsRequest], context: Context
    ) -> pb.PutWeightsResponse:
        """An adapter in pieces."""
        await self._check(context)
        upload: Upload | None = None
        try:
            async for request in requests:
                if upload is None:
                    upload = Upload(request.header)
                else:
                    upload.add(request.piece)
            if upload is None:
                return pb.PutWeightsResponse()
            self._host.put_weights(upload.artifact())
            return pb.PutWeightsResponse(size=upload.size)
        except RouterError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            raise

    async def _read(self, session: Session, requests: AsyncIterator[pb.AttachRequest]) -> None:
        async for request in requests:
            self._host.receive(session, request)
        self._host.end(session, "the edge ended the stream")

    async def _check(self, context: Context) -> None:
        """Ends the call of somebody who does not know the secret."""
        if not self._secret:
            return
        said = dict(context.invocation_metadata() or ()).get("authorization", "")
        found = said.encode() if isinstance(said, str) else said
        if not hmac.compare_digest(found, self._secret):
            log.warning("%s does not know the secret of this replica", context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the secret is not that of this replica")
