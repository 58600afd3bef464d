"""google.rpc details of an error: what each class of the error tree adds to ErrorInfo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as rpc

from router.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.server.told import clean, told

DOMAIN = "lora-router"
MAX_FIELD, MAX_METADATA = 256, 16


def clip(text: str, most: int = MAX_FIELD) -> str:
    """`text`, cut to `most` bytes with an ellipsis."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"


def shown(text: str) -> str:
    """`text` as callers may see it, and as long as they may."""
    return clip(clean(text))


def error_info(reason: str, metadata: Mapping[str, str], request_id: str) -> rpc.ErrorInfo:
    """The detail every error has."""
    pairs = {clip(clean(key), 63): shown(value) for key, value in list(metadata.items())[:MAX_METADATA]}
    return rpc.ErrorInfo(reason=reason, domain=DOMAIN, metadata={**pairs, "request_id": request_id})


def _bad_request(error: InvalidRequest) -> rpc.BadRequest:
    return rpc.BadRequest(
        field_violations=[
            rpc.BadRequest.FieldViolation(field=shown(v.field), description=shown(v.description))
            for v in error.violations
        ]
    )


def _retry(error: Unavailable) -> rpc.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(error.retry_after * 1e9))
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


DETAILS: Mapping[type[RouterError], Callable[[Any], Any]] = {
    InvalidRequest: _bad_request,
    Unavailable: _retry,
    NotFound: _missing,
    AlreadyExists: _existing,
    FailedPrecondition: _precondition,
    ResourceExhausted: _quota,
}


def details_of(error: RouterError) -> list[Any]:
    """What the class and its bases add, the most derived first."""
    return [DETAILS[kind](error) for kind in type(error).__mro__ if kind in DETAILS]
