"""Exceptions to gRPC statuses: the one mapping.

The code of a RouterError is its class's `code`; anything else is INTERNAL. An INTERNAL answer has a fixed
text and the request id, never the exception's text; of others callers get what `router.server.told` leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2

from router.errors import RouterError, Unavailable
from router.server.details import clip, details_of, error_info
from router.server.told import told

INTERNAL_TEXT = "internal error; the server's log has the rest under this request id"
MAX_MESSAGE, MAX_DETAILS = 1024, 3584
CODES = {code.name: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Status:
    """What `context.abort` needs."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of an exception."""
    return CODES[error.code] if isinstance(error, RouterError) else grpc.StatusCode.INTERNAL


def status_of(error: Exception, request_id: str) -> Status:
    """Code, message and trailers; all of it stays under gRPC's 8 KiB for metadata."""
    code = code_of(error)
    if isinstance(error, RouterError) and code is not grpc.StatusCode.INTERNAL:
        message = _message(told(error))
        details = [error_info(error.reason, error.metadata, request_id), *details_of(error)]
    else:
        reason = error.reason if isinstance(error, RouterError) else "INTERNAL"
        message, details = INTERNAL_TEXT, [error_info(reason, {}, request_id)]
    details.append(rpc.RequestInfo(request_id=request_id))
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", _packed(code, message, details)),
        ("x-request-id", request_id),
    ]
    if isinstance(error, Unavailable):
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    return Status(code, message, tuple(trailers))


def _message(text: str) -> str:
    """One line; grpc-message is percent-encoded, so what is not printable ASCII counts three times a byte."""
    line = "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE])
    return clip(line, MAX_MESSAGE if line.isascii() else MAX_MESSAGE // 3)


def _packed(code: grpc.StatusCode, message: str, details: list[Any]) -> bytes:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        _shrink(detail)
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


def _shrink(detail: Any) -> None:
    """Drop the last field violations until the detail fits."""
    while isinstance(detail, rpc.BadRequest) and detail.ByteSize() > MAX_DETAILS:
        del detail.field_violations[-1]
