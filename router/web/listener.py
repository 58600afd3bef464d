"""The HTTP listener: uvicorn in the server's own event loop, with bounds against idle and slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from router.errors import ConfigError
from router.server.listen import METADATA_BYTES, most_connections, split_address
from router.server.tls import Tls

HEAD_SECONDS = 20.0  # from the first byte of a request, or a new connection, until its head is there
HEAD_END = re.compile(rb"\n\r?\n")
IDLE_SECONDS = 120  # between requests

logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the server logs what it serves itself


class Framing(h11.Connection):
    """HTTP/1.1 of a server that bounds every head and takes no ambiguous length.

    h11 looks at the size of a head that is incomplete, so one that comes whole in one read passes; and it
    takes a body with both Content-Length and Transfer-Encoding, which a proxy in front may cut elsewhere.
    """

    def next_event(self) -> Any:
        """The next event. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            data, _ = self.trailing_data
            if len(data) > METADATA_BYTES and not HEAD_END.search(data, 0, METADATA_BYTES):
                raise h11.RemoteProtocolError("the head of the request is too large", 431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding exclude each other", 400)
        return event


class Protocol(H11Protocol):
    """Uvicorn's, for a number of connections that have a bound; a request's head must come in time."""

    _late: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Framing(h11.SERVER, METADATA_BYTES)

    def connection_made(self, transport: Any) -> None:
        """Hang up where there are too many, as the gRPC port does."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "certificate": certificate(transport)}
        if len(self.connections) > most_connections():
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Part of a head, or of a body, whose time the layers look after."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever left is waited for no more."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._late is not None and answering:
            self._late.cancel()
            self._late = None
        elif self._late is None and not answering:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def certificate(transport: Any) -> bytes:
    """The certificate that the client showed, PEM; empty without one."""
    connection = transport.get_extra_info("ssl_object")
    shown = connection.getpeercert(binary_form=True) if connection is not None else None
    return ssl.DER_cert_to_PEM_cert(shown).encode() if shown else b""


class _Server(uvicorn.Server):
    """Signals are the application's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class Listener:
    """Serves an ASGI application until it is stopped."""

    def __init__(self, listen: str, tls: Tls | None) -> None:
        self._listen, self._tls, self.address = listen, tls, ""
        self.beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()  # goes on while it serves
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    def bind(self) -> socket.socket:
        """Take the address. Raises ConfigError where it cannot be had."""
        host, number = split_address(self._listen, "http_listen")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((bare, number))
        except OSError as error:
            sock.close()
            text = f"cannot listen on {self._listen} for HTTP ({error.strerror}); choose another address"
            raise ConfigError(f"{text} with --http-listen, or '' for none") from error
        self.address = f"{host}:{sock.getsockname()[1]}"
        self._socket = sock
        return sock

    async def start(self, application: Any) -> None:
        """Serve, at an address that is taken now if it was not. Raises ConfigError."""
        sock = self._socket or self.bind()
        config = uvicorn.Config(
            application,
            http=Protocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            h11_max_incomplete_event_size=METADATA_BYTES,
        )
        config.load()
        config.ssl = self._tls.context() if self._tls is not None else None
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([sock]), name="http")

    async def stop(self, seconds: float) -> None:
        """No more connections; requests that run have so long to end."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(seconds)
        self._server.should_exit = True
        await self._task

    def end(self) -> None:
        """Wait for nothing."""
        if self._server is not None:
            self._server.force_exit = self._server.should_exit = True
