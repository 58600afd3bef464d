"""An exception as a status of gRPC: code, message, and google.rpc details in the trailers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2

from router.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.server.status import INTERNAL, clip, code_of, message_of, reason_of, redacted, shown, told

DOMAIN = "lora-router"
CODES = {code.name: code for code in grpc.StatusCode}
MAX_DETAILS, MAX_METADATA = 3584, 16
ENTRY_BYTES = 3  # of an entry's tag and length; one with two texts of MAX_FIELD bytes has less than 16 KiB


@dataclass(frozen=True, slots=True)
class Status:
    """What `context.abort` needs."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def status_of(error: Exception, request_id: str) -> Status:
    """Code, message and trailers; all of it stays under gRPC's 8 KiB for metadata."""
    code, message = CODES[code_of(error)], message_of(error)
    details: list[Any] = []
    if isinstance(error, RouterError) and code.name != INTERNAL:
        details += [error_info(error.reason, error.metadata, request_id), *details_of(error)]
    else:
        details.append(error_info(reason_of(error), {}, request_id))
    details.append(rpc.RequestInfo(request_id=request_id))
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", _packed(code, message, details)),
        ("x-request-id", request_id),
    ]
    if isinstance(error, Unavailable):
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    return Status(code, message, tuple(trailers))


def _packed(code: grpc.StatusCode, message: str, details: list[Any]) -> bytes:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


# -- What each class of the error tree adds to ErrorInfo.


def details_of(error: RouterError) -> list[Any]:
    """What the class and its bases add, the most derived first."""
    found = [DETAILS[kind](error) for kind in type(error).__mro__ if kind in DETAILS]
    if isinstance(error, QuotaExceeded) and error.retry_after is not None:
        found.append(_retry(error.retry_after))
    return found


def error_info(reason: str, metadata: Mapping[str, str], request_id: str) -> rpc.ErrorInfo:
    """The detail every error has."""
    pairs = {clip(redacted(key), 63): shown(value) for key, value in list(metadata.items())[:MAX_METADATA]}
    return rpc.ErrorInfo(reason=reason, domain=DOMAIN, metadata={**pairs, "request_id": request_id})


def _bad_request(error: InvalidRequest) -> rpc.BadRequest:
    """The first violations, as many as MAX_DETAILS bytes hold."""
    detail, size = rpc.BadRequest(), 0
    for v in error.violations:
        entry = rpc.BadRequest.FieldViolation(field=shown(v.field), description=shown(v.description))
        size += entry.ByteSize() + ENTRY_BYTES
        if size > MAX_DETAILS:
            break
        detail.field_violations.append(entry)
    return detail


def _retry(seconds: float) -> rpc.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return rpc.RetryInfo(retry_delay=delay)


def _missing(error: NotFound) -> rpc.ResourceInfo:
    return rpc.ResourceInfo(
        resource_type=error.resource_type, resource_name=shown(error.name), description="not found"
    )


def _existing(error: AlreadyExists) -> rpc.ResourceInfo:
    return rpc.ResourceInfo(
        resource_name=shown(error.metadata.get("resource", "")), description="exists already"
    )


def _precondition(error: FailedPrecondition) -> rpc.PreconditionFailure:
    return rpc.PreconditionFailure(
        violations=[
            rpc.PreconditionFailure.Violation(
                type=error.reason,
                subject=shown(error.metadata.get("resource", "")),
                description=clip(told(error)),
            )
        ]
    )


def _quota(error: ResourceExhausted) -> rpc.QuotaFailure:
    return rpc.QuotaFailure(
        violations=[rpc.QuotaFailure.Violation(subject="memory", description=clip(told(error)))]
    )


def _used_up(error: QuotaExceeded) -> rpc.QuotaFailure:
    return rpc.QuotaFailure(
        violations=[rpc.QuotaFailure.Violation(subject=error.holder, description=clip(told(error)))]
    )


DETAILS: Mapping[type[RouterError], Callable[[Any], Any]] = {
    InvalidRequest: _bad_request,
    Unavailable: lambda error: _retry(error.retry_after),
    NotFound: _missing,
    AlreadyExists: _existing,
    FailedPrecondition: _precondition,
    ResourceExhausted: _quota,
    QuotaExceeded: _used_up,
}
