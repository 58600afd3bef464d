"""The connection as both clients use it: retries, deadlines, request ids, and failures as ClientError."""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import grpc

from router.errors import FieldViolation

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 60.0
MAX_MESSAGE_BYTES = 16 << 20
SYSTEM = "system"
_DETAILS_KEY = "grpc-status-details-bin"

# gRPC retries a call only until its response headers arrive, so a stream that began is never repeated.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_RETRIED = {
    "InferenceService": ("",),  # every method
    "AdapterService": ("ListAdapters", "GetAdapter", "LoadAdapter", "UnloadAdapter", "ListPlugins"),
    "FleetService": ("ListReplicas",),
    "ExperimentService": (
        "GetExperiment",
        "ListExperiments",
        "StartExperiment",
        "GetReport",
        "RecordOutcome",
    ),
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": f"router.v1.{service}", "method": method} for method in methods],
            "retryPolicy": _RETRY,
        }
        for service, methods in _RETRIED.items()
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}


@dataclass(eq=False)
class ClientError(Exception):
    """A call that failed.

    `code` is the gRPC status name, `reason` the server's own reason (empty where the error came from
    the network or the library), `violations` every bad field, `retry_after` seconds if the server said.
    """

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    request_id: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def unreachable(self) -> bool:
        """Nobody answered: no server there, or the connection broke."""
        return self.code == "UNAVAILABLE" and not self.reason


def channel_options(target: str) -> list[tuple[str, Any]]:
    """Options of the channel. A proxy from the environment is never asked for the own machine."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def is_loopback(target: str) -> bool:
    """Whether a target, HOST:PORT or unix:PATH, stays on this machine."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or target.startswith("unix:")


class Secured(TypedDict, total=False):
    """How a client proves who it is, and knows the server.

    `tls_ca` names a file of certificates (PEM) that the server's must come from, or is "system" for those
    that come with gRPC. Without it, and without a certificate of its own, a client speaks plain text.
    """

    token: str
    tls_ca: str | Path
    client_cert: str | Path
    client_key: str | Path


def channel_credentials(target: str, secured: Secured) -> grpc.ChannelCredentials | None:
    """How the channel is encrypted; None: not at all.

    Raises ValueError for half of a certificate, and for a token that would cross a network in plain text;
    OSError for a file that cannot be read.
    """
    ca, cert, key = (secured.get(name) or "" for name in ("tls_ca", "client_cert", "client_key"))
    if bool(cert) != bool(key):
        raise ValueError("client_cert and client_key go together")
    if target.startswith("unix:"):  # the system keeps others out
        return None
    if not ca and not cert:
        if secured.get("token") and not is_loopback(target):
            raise ValueError(f"a token is not sent to {target} in plain text: give tls_ca")
        return None
    roots = Path(str(ca)).read_bytes() if ca not in ("", SYSTEM) else None
    chain, private = (Path(str(file)).read_bytes() if file else None for file in (cert, key))
    return grpc.ssl_channel_credentials(roots, private, chain)


CallSettings = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def call_settings(default_timeout: float | None, token: str) -> CallSettings:
    """Return a function from a call's options to its request id, and to its timeout and metadata.

    The token stays in the closure, so that no repr of a client shows it.
    """

    def settings(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        request_id = options.get("request_id") or uuid.uuid4().hex
        timeout = options.get("timeout", default_timeout)
        metadata: tuple[tuple[str, str], ...] = (("x-request-id", request_id),)
        if token:
            metadata += (("authorization", f"Bearer {token}"),)
        return request_id, {"timeout": timeout, "metadata": metadata}

    return settings


def client_error(error: grpc.RpcError, request_id: str) -> ClientError:
    """Read status, google.rpc details and trailers of a sync or aio error."""
    call: Any = error
    details = _details(call.trailing_metadata())
    info, bad, retry = (details.get(kind) for kind in ("ErrorInfo", "BadRequest", "RetryInfo"))
    return ClientError(
        code=call.code().name,
        message=call.details() or "",
        reason=info.reason if info else "",
        metadata=dict(info.metadata) if info else {},
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations) if bad else (),
        request_id=request_id,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
    )


def _details(trailers: Any) -> dict[str, Any]:
    from google.rpc import error_details_pb2, status_pb2

    found: dict[str, Any] = {}
    raw = next((value for key, value in trailers or () if key == _DETAILS_KEY), None)
    if raw is None:
        return found
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    for packed in status_pb2.Status.FromString(raw).details:
        for kind in kinds:
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return found
