"""Where a server is reached, and what it answers there: gRPC, HTTP, and the page of metrics and probes.

Each address has bounds against floods, and against idle and slow clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import re
import resource
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import h11
import uvicorn
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from router.access.access import new_response_id
from router.config import Settings
from router.errors import ConfigError, install_extra
from router.server.call import REQUEST_ID_KEY
from router.server.grpc_adapter import GrpcServer
from router.server.http import JSON, error_json
from router.server.policy import LARGE, ROWS, ServiceSpec
from router.server.tls import Tls

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the server logs what it serves itself
logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # and what is no request

MAX_SENT_BYTES = 16 << 20
METADATA_BYTES = 12 << 10  # of a call's headers, a token of 8 KiB among them; above, some are refused
MAX_METADATA_BYTES = 16 << 10  # above, all are
ROOM_FOR_OTHERS = 100  # calls of one connection beside the requests let in: refusals, health, adapters
FULL_CONNECTIONS = 10  # so many may have all their calls waiting to be looked at
MOST_CONNECTIONS = 2_000  # to one address, and half of the descriptors that the process may have
CONNECTION_IDLE_MS = 2 * 60_000  # without a call
HANDSHAKE_MS = 5_000
MIN_PING_INTERVAL_MS = 5_000  # clients are told 10 s; a timer that fires a little early is no flood
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
CONNECTION_AGE_MS = 30 * 60_000

HEAD_SECONDS = 20.0  # from the first byte of a request, or a new connection, until its head is there
HEAD_END = re.compile(rb"\n\r?\n")
MOST_HEADERS = 100  # of a request, and of a trailer
READ_BYTES = 16 << 10  # at once from a connection
FREE_CHUNKS, CHUNK_BYTES = 1_024, 64  # of a body; further chunks have so many bytes on average
PASS_EVENTS = 256  # of a listener in one pass of the event loop; an event, such as a chunk, takes some 10 µs
SHARE_EVENTS = 32  # of a connection in its turn
REQUEST_EVENTS = 256  # that a request counts as, so that one begins in a pass
LINGER_SECONDS = 1.0  # that a client has to read why it was refused
IDLE_SECONDS = 120  # between requests
PROBE_SECONDS = 5.0  # for a connection of the metrics listener, its request and its answer
MOST_PROBES = 256  # connections of the metrics listener
LAST_PROBES_SECONDS = 1.0  # for probes to end at shutdown


def bind(server: grpc.aio.Server, listen: str, tls: Tls | None, setting: str = "listen") -> str:
    """Take the address; returns it with the port that was given. Raises ConfigError if it is taken."""
    host, _ = split_address(listen, setting)
    try:
        if tls is None:
            number = server.add_insecure_port(listen)
        else:
            number = server.add_secure_port(listen, tls.credentials())
    except RuntimeError as error:
        text = f"cannot listen on {listen}: the address is in use or not this machine's"
        raise ConfigError(
            f"{text}; is another server running? Choose another with --set {setting}=HOST:PORT"
        ) from error
    return f"{host}:{number}"


def check_free(settings: Settings) -> None:
    """Raises ConfigError that names every address where something listens already.

    Takes each for a moment. `bind` finds out, too, but only once torch and the base are there.
    """
    taken: dict[str, str] = {}  # addresses by their settings
    for setting in ("listen", "metrics_listen", "http_listen"):
        if not (listen := getattr(settings, setting)):
            continue
        host, number = split_address(listen, setting)
        if number and _is_taken(host.strip("[]"), number):
            taken[setting] = listen
    if not taken or (list(taken) == ["http_listen"] and has_default_http(settings)):
        return  # the server starts without HTTP
    flags = " and ".join(f"--set {setting}=HOST:PORT" for setting in taken)
    raise ConfigError(
        f"cannot listen on {' and '.join(taken.values())}: something listens there already, perhaps another "
        f"server of yours. Stop it, or choose another address with {flags}"
    )


def has_default_http(settings: Settings) -> bool:
    """Whether the HTTP address was not chosen, so that the server starts without it where it is in use."""
    return "http_listen" not in settings.model_fields_set


def _is_taken(host: str, number: int) -> bool:
    """Whether the port is in use. Other reasons why an address cannot be taken are left to `bind`."""
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


def split_address(listen: str, setting: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 host in brackets; raises ConfigError naming the setting."""
    host, _, number = listen.rpartition(":")
    bare = host.startswith("[") == host.endswith("]") and (host.startswith("[") or ":" not in host)
    if not host or not bare or not number.isascii() or not number.isdigit() or int(number) > 65535:
        raise ConfigError(f"{setting} must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051: {listen!r}")
    return host, int(number)


def server_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """No sharing of the port, bounds against floods, and connections that end so that clients spread.

    A call whose message is not read yet has 64 KiB here. With `bdp_probe` the library would let each call
    send megabytes ahead: 256 calls of 2 MiB that wait for their turn held 500 MB. While a message is read,
    the window is as large as the message.

    One connection may carry every request that is let in; a client holds further calls back until others
    end. `overload_protection` would count calls that have ended and are not freed yet, which no client can
    know of, and reset those beyond. Past `max_pending_requests` of a method its calls are cancelled unseen.
    """
    streams = settings.max_running + settings.max_queue + ROOM_FOR_OTHERS
    return (
        ("grpc.so_reuseport", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", streams),
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", FULL_CONNECTIONS * streams),
        ("grpc.server.max_pending_requests_hard_limit", FULL_CONNECTIONS * streams),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_receive_message_length", max(settings.max_body_bytes, LARGE)),
        ("grpc.max_send_message_length", MAX_SENT_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", int(settings.max_deadline_seconds * 1000)),
    )


def most_connections() -> int:
    """To one address at once; those beyond are hung up on, so that files can still be opened."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if most == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, most // 2)


def add_reflection(services: Iterable[str], server: GrpcServer) -> None:
    """Describe these services, and reflection itself. Where the library is not installed, a line in the log
    says so."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
        from grpc_reflection.v1alpha._async import ReflectionServicer
    except ModuleNotFoundError:
        log.warning("no reflection: it needs the package grpcio-reflection: %s", install_extra("reflection"))
        return
    servicer = ReflectionServicer((*services, reflection.SERVICE_NAME))
    server.add_service(
        ServiceSpec(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer, ROWS)
    )


# -- HTTP: uvicorn in the server's own event loop.


class Refused(h11.RemoteProtocolError):
    """A request that is beyond the bounds of this server. The text is for its client."""


class Received(ReceiveBuffer):
    """What came and is not parsed yet. A head, and the trailer of a body, has its bounds before it is parsed.

    h11 looks at the size of what is incomplete, so a head that comes whole in one read would pass.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head or a trailer that is complete. Raises Refused."""
        head = self._data[: METADATA_BYTES + 1]
        end = HEAD_END.search(head)
        size = end.end() if end is not None else len(head)
        if size > METADATA_BYTES:
            raise Refused(f"the head of the request has more than {METADATA_BYTES} bytes")
        if head.count(b"\n", 0, size) > MOST_HEADERS + 2:  # the request's own line, and the empty one
            raise Refused(f"the request has more than {MOST_HEADERS} headers")
        return super().maybe_extract_lines()


class Framing(h11.Connection):
    """HTTP/1.1 of a server that bounds heads and chunks, and takes no ambiguous length.

    h11 takes a body with both Content-Length and Transfer-Encoding, which a proxy in front may cut elsewhere.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, METADATA_BYTES)
        self._receive_buffer = Received()
        self._chunks = self._chunk_bytes = 0  # of the present body
        self.left = 0  # events of the present turn
        self.problem = "the request is malformed"  # what its refusal says

    def next_event(self) -> Any:
        """The next event; none where the turn is over. Raises RemoteProtocolError."""
        if self.left <= 0:
            return h11.NEED_DATA
        self.left -= 1
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._bound(event)
        except Refused as error:
            self.problem = str(error)
            raise
        return event

    def _begin(self, request: h11.Request) -> None:
        self._chunks = self._chunk_bytes = 0
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise Refused("Content-Length and Transfer-Encoding exclude each other")

    def _bound(self, data: h11.Data) -> None:
        """Refuse a body in tiny chunks: each costs as much as one of 16 KiB."""
        self._chunks += data.chunk_start
        self._chunk_bytes += len(data.data)
        if self._chunks > FREE_CHUNKS + self._chunk_bytes // CHUNK_BYTES:
            text = f"the body has more than {FREE_CHUNKS} chunks of less than {CHUNK_BYTES} bytes on average"
            raise Refused(f"{text}: send larger chunks, or Content-Length")


class Turns:
    """What the connections of a listener sent is parsed in turn, and so much of it in one pass of the event
    loop: a client that sends thousands of tiny parts keeps nobody else waiting."""

    def __init__(self) -> None:
        self.room = memoryview(bytearray(READ_BYTES))  # of the read that is taking place
        self._waiting: deque[Protocol] = deque()
        self._pass: asyncio.Handle | None = None  # the next one

    def wait(self, connection: Protocol) -> None:
        """Let it parse when its turn comes."""
        self._waiting.append(connection)
        if self._pass is None:
            self._pass = asyncio.get_running_loop().call_soon(self._parse)

    def _parse(self) -> None:
        self._pass = asyncio.get_running_loop().call_soon(self._parse)
        left = PASS_EVENTS
        while self._waiting and left > 0:
            left -= self._waiting.popleft().parse()
        if not self._waiting:
            self._pass.cancel()
            self._pass = None


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """Uvicorn's, for a number of connections that have a bound; a request's head must come in time.

    As a `BufferedProtocol` it says how much is read at once. While a connection waits for its turn, no more
    is read from it.
    """

    _late: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, turns: Turns, **options: Any) -> None:
        """`turns` is one for all connections of a listener."""
        super().__init__(*arguments, **options)
        self.conn: Framing = Framing()
        self._turns = turns
        self._waits = self._refused = False

    def connection_made(self, transport: Any) -> None:
        """Hang up where there are too many, as the gRPC port does."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "certificate": certificate(transport)}
        if len(self.connections) > most_connections():
            transport.abort()
        self._watch()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next read goes."""
        return self._turns.room

    def buffer_updated(self, nbytes: int) -> None:
        """Part of a head, or of a body, whose time the interceptors bound."""
        if not self._refused:
            self.data_received(bytes(self._turns.room[:nbytes]))

    def handle_events(self) -> None:
        """Wait for the turn to parse what has come."""
        if not self._waits:
            self._waits = True
            self.transport.pause_reading()
            self._turns.wait(self)

    def parse(self) -> int:
        """Parse a share of what has come; returns how many events that was worth."""
        self._waits = False
        if self._refused or self.transport.is_closing():
            return 0
        self.conn.left, before = SHARE_EVENTS, self.cycle
        try:
            super().handle_events()
        except BaseException:  # asyncio logs it
            self.transport.abort()
            raise
        self._watch()
        if self._refused:
            self.transport.resume_reading()
        elif self.conn.left <= 0:
            self.handle_events()
        elif not self.flow.read_paused:
            self.transport.resume_reading()
        began = REQUEST_EVENTS if self.cycle is not before else 0
        return SHARE_EVENTS - self.conn.left + began

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, as all else is refused, and hang up.

        What comes yet is dropped for a moment: to close at once would take the answer from a client that is
        still sending.
        """
        self._refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps(error_json(400, "INVALID_REQUEST", self.conn.problem, "")).encode()
        headers = [
            ("content-type", JSON),
            ("content-length", str(len(body))),
            ("connection", "close"),
            (REQUEST_ID_KEY, new_response_id()),
        ]
        sent = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way already
            for event in (sent, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more for a client that left."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._refused:
            return
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
        try:
            # asyncio sends without delay (TCP_NODELAY) only where the protocol is named.
            family, kind, protocol, _, at = socket.getaddrinfo(
                host.strip("[]"), number, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP, socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, protocol)
            self._sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(at)
        except OSError as error:
            self._close()
            text = f"cannot listen on {self._listen} for {self._setting} ({error.strerror}); choose another"
            raise ConfigError(f"{text} with --set {self._setting}=HOST:PORT, or '' for none") from error
        self.address = f"{host}:{sock.getsockname()[1]}"

    def _close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    async def start(self, application: Any) -> None:
        """Serve, at an address that is taken now if it was not; returns once it listens. Raises
        ConfigError."""
        if not self._sockets:
            self.bind()
        protocol: Any = partial(self._protocol, turns=Turns())
        config = uvicorn.Config(
            application,
            http=protocol,
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
            self._close()
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(seconds)
        self._server.should_exit = True
        await self._task

    def end(self) -> None:
        """Wait for nothing."""
        if self._server is not None:
            self._server.force_exit = self._server.should_exit = True


def metrics_listener(settings: Settings, shed: Callable[[], None]) -> Listener:
    """The listener of metrics and probes; `shed` is called for each connection that ends to make room."""
    protocol = partial(Probes, open={}, shed=shed)
    return Listener(settings.metrics_listen, None, "metrics_listen", protocol)
