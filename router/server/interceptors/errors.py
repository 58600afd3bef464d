"""Outermost layer: every exception leaves as a status with google.rpc details."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.errors import FieldViolation, InvalidRequest
from router.server.interceptors.call import Call
from router.server.status import code_of, status_of

log = logging.getLogger(__name__)


class Undecodable:
    """Stands for a request whose bytes are no message of its type."""


def guarded(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that returns Undecodable where the library would answer with exception text."""
    if deserializer is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception as error:  # whatever the parser raises, the bytes are the caller's
            log.debug("undecodable request: %s", type(error).__name__)
            return Undecodable()

    return deserialize


def decoded(request: Any) -> Any:
    """The request; raises InvalidRequest for an undecodable one."""
    if isinstance(request, Undecodable):
        raise InvalidRequest([FieldViolation("request", "the bytes are not a message of this method")])
    return request


@asynccontextmanager
async def mapped_errors(call: Call, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Abort the call with the status of what is raised inside."""
    try:
        yield
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception as error:
        if code_of(error) is grpc.StatusCode.INTERNAL:
            log.exception("internal error", extra={"fields": call.ids})
        status = status_of(error, call.request_id)
        await context.abort(status.code, status.message, trailing_metadata=status.trailers)
