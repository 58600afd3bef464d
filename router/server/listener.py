"""HTTP listeners: uvicorn in the server's own event loop, with bounds against idle and slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
import ssl
from collections.abc import Callable, Iterator
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
PROBE_SECONDS = 5.0  # for a connection of the metrics listener, its request and its answer
MOST_PROBES = 256  # connections of the metrics listener

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
        """Part of a head, or of a body, whose time the interceptors bound."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more for a client that left."""
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


class Probes(Protocol):
    """The metrics listener's. A connection has PROBE_SECONDS in all. Beyond MOST_PROBES the oldest ends: a
    client that reads or writes slowly makes room for the next probe."""

    def __init__(
        self, *arguments: Any, open: dict[Probes, None], shed: Callable[[], None], **options: Any
    ) -> None:
        """`open` has the connections of the listener, the oldest first; `shed` is called for each one that is
        ended to make room."""
        super().__init__(*arguments, **options)
        self._open, self._shed = open, shed

    def connection_made(self, transport: Any) -> None:
        """End the oldest where there are too many."""
        if len(self._open) >= MOST_PROBES:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
            self._shed()
        self._open[self] = None
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It makes room."""
        self._open.pop(self, None)
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(PROBE_SECONDS, self.transport.abort)


def certificate(transport: Any) -> bytes:
    """The certificate that the client showed, PEM; empty without one."""
    connection = transport.get_extra_info("ssl_object")
    shown = connection.getpeercert(binary_form=True) if connection is not None else None
    return ssl.DER_cert_to_PEM_cert(shown).encode() if shown else b""


class _Server(uvicorn.Server):
    """Signals are the application's; `up` is set once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class Listener:
    """Serves an ASGI application at the address of the setting `setting` until it is stopped."""

    def __init__(
        self, listen: str, tls: Tls | None, setting: str = "http_listen", protocol: Any = Protocol
    ) -> None:
        self._listen, self._tls, self._setting, self._protocol = listen, tls, setting, protocol
        self.address = ""
        self._sockets: list[socket.socket] = []
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """Take the address. Raises ConfigError where it cannot be had."""
        host, number = split_address(self._listen, self._setting)
        flag = "--" + self._setting.replace("_", "-")
        try:
            found = dict.fromkeys(
                (family, at[0])
                for family, _, _, _, at in socket.getaddrinfo(
                    host.strip("[]"), number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )
            for family, at in found:
                # asyncio sends without delay (TCP_NODELAY) only where the protocol is named.
                sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6 and len(found) > 1:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((at, number))
                number = sock.getsockname()[1]  # the same for every address of a name
        except OSError as error:
            for sock in self._sockets:
                sock.close()
            text = f"cannot listen on {self._listen} for {self._setting} ({error.strerror}); choose another"
            raise ConfigError(f"{text} address with {flag}, or '' for none") from error
        self.address = f"{host}:{number}"

    async def start(self, application: Any) -> None:
        """Serve, at an address that is taken now if it was not; returns once it listens. Raises
        ConfigError."""
        if not self._sockets:
            self.bind()
        config = uvicorn.Config(
            application,
            http=self._protocol,
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
        self._task = asyncio.create_task(self._server.serve(self._sockets), name=self._setting)
        up = asyncio.ensure_future(self._server.up.wait())
        await asyncio.wait((self._task, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()

    async def stop(self, seconds: float) -> None:
        """No more connections; requests that run have so long to end."""
        if self._server is None or self._task is None:
            for sock in self._sockets:
                sock.close()
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(seconds)
        self._server.should_exit = True
        await self._task

    def end(self) -> None:
        """Wait for nothing."""
        if self._server is not None:
            self._server.force_exit = self._server.should_exit = True
