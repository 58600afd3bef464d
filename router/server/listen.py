"""How the server listens: its addresses, its bounds against floods, and reflection."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from router.access.addresses import is_loopback
from router.config import Settings
from router.errors import ConfigError, install_extra
from router.server.grpc_adapter import GrpcServer
from router.server.policy import MAX_PLAN_BYTES, ROWS
from router.server.tls import Tls

log = logging.getLogger(__name__)

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
UNIX = "unix:"
MAX_SOCKET_PATH = 107  # bytes, of the system
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


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
        flag = "--" + setting.replace("_", "-")
        raise ConfigError(f"{text}; is another server running? Choose another with {flag}") from error
    return f"{host}:{number}"


def check_free(settings: Settings) -> None:
    """Raises ConfigError for an address where something listens already.

    Takes each for a moment. `bind` finds out, too, but only once torch and the base are there.
    """
    for setting in ("listen", "metrics_listen", "http_listen", "sidecar_listen"):
        listen = getattr(settings, setting)
        if not listen or listen.startswith(UNIX):
            continue
        host, number = split_address(listen, setting)
        if number and _is_taken(host.strip("[]"), number):
            raise ConfigError(
                f"cannot listen on {listen}: something listens there already, perhaps another server of "
                f"yours. Stop it, or choose another address with --{setting.replace('_', '-')} HOST:PORT"
            )


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


def bind_sidecar(server: grpc.aio.Server, listen: str) -> str:
    """Take an address that only this machine reaches; returns it as `bind` does. Raises ConfigError."""
    check_sidecar(listen)
    if not listen.startswith(UNIX):
        return bind(server, listen, None, "sidecar_listen")
    bind_socket(server, listen, "sidecar_listen")
    return listen


def check_sidecar(listen: str) -> None:
    """Raises ConfigError for an address that others reach: there any caller may claim any name."""
    if listen.startswith(UNIX):
        return
    host, _ = split_address(listen, "sidecar_listen")
    if not is_loopback(host.strip("[]")):
        raise ConfigError(
            f"sidecar_listen must be on this machine, 127.0.0.1:PORT or unix:/PATH, not {listen}: "
            "every caller that reaches it is believed to be whom it names"
        )


def bind_socket(server: grpc.aio.Server, listen: str, setting: str) -> None:
    """Take a Unix socket that only this user can open. Raises ConfigError naming the setting."""
    path = Path(listen.removeprefix(UNIX))
    if not listen.startswith(UNIX) or not path.is_absolute() or len(os.fsencode(path)) > MAX_SOCKET_PATH:
        text = f"{setting} must be unix:/PATH, of at most {MAX_SOCKET_PATH} bytes"
        raise ConfigError(f"{text}: {listen!r}")
    if _answers(path):
        raise ConfigError(f"cannot listen on {listen}: another server does")
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {listen}: is its folder there, and may one write it?") from error
    finally:
        os.umask(mask)


def _answers(path: Path) -> bool:
    """Whether somebody listens there: the library would take the socket away from them."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


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
    know of, and reset those beyond. Past `max_pending_requests` calls are cancelled unseen.
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
        ("grpc.max_receive_message_length", max(settings.max_body_bytes, MAX_PLAN_BYTES)),
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
    """Describe these services, and reflection itself, by v1 and v1alpha: older clients ask for the second.

    The library has v1alpha only; the messages of both are the same on the wire. Where it is not installed,
    a line in the log says so.
    """
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
        from grpc_reflection.v1alpha._async import ReflectionServicer
        from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
    except ModuleNotFoundError:
        log.warning(
            "no reflection: it needs the package grpcio-reflection: %s; or set reflection = false",
            install_extra("reflection"),
        )
        return

    servicer = ReflectionServicer((*services, reflection.SERVICE_NAME))

    def add(servicer: ReflectionServicer, server: Any) -> None:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        server.add_registered_method_handlers(REFLECTION_V1, {"ServerReflectionInfo": handler})

    server.add_service(add, servicer, ROWS, library=True)
