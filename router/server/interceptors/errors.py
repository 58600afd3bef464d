"""Outermost layer: every exception leaves as a status with google.rpc details."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.errors import FieldViolation, InvalidRequest, NotFound, RouterError, Unavailable
from router.server.interceptors.call import Call
from router.server.status import code_of, status_of
from router.server.told import withheld

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


def _keep(error: Exception, call: Call) -> None:
    """Log what the caller is not told. What every call of an hour may end with gets no traceback."""
    if not isinstance(error, RouterError) or code_of(error) is grpc.StatusCode.INTERNAL:
        log.error("internal error", exc_info=error, extra={"fields": call.ids})
    elif withheld(error):
        often = isinstance(error, InvalidRequest | NotFound | Unavailable)
        fields = {**call.ids, "reason": error.reason, "text": error.message, "of": dict(error.metadata)}
        log.warning("not told in full", exc_info=None if often else error, extra={"fields": fields})


@asynccontextmanager
async def mapped_errors(call: Call, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Abort the call with the status of what is raised inside."""
    try:
        yield
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception as error:
        _keep(error, call)
        status = status_of(error, call.request_id)
        await context.abort(status.code, status.message, trailing_metadata=status.trailers)
