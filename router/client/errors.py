"""A failed call as one exception that carries what the server said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from router.errors import FieldViolation

DETAILS_KEY = "grpc-status-details-bin"


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


def _details(trailers: Any) -> dict[str, Any]:
    from google.rpc import error_details_pb2, status_pb2

    found: dict[str, Any] = {}
    raw = next((value for key, value in trailers or () if key == DETAILS_KEY), None)
    if raw is None:
        return found
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    for packed in status_pb2.Status.FromString(raw).details:
        for kind in kinds:
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return found


def to_client_error(error: grpc.RpcError, request_id: str = "") -> ClientError:
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
