"""What happens around every call: errors, log and metrics, drain, deadline and admission, in this order.

Which of these layers a method gets says its `Policy`; every exception leaves as a status with details.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from router.errors import DeadlineExceeded, FieldViolation, InvalidRequest, NotFound, RouterError, Unavailable
from router.judging import REFERENCE
from router.server.call import CURRENT, Call, request_id_of
from router.server.lifecycle import Lifecycle
from router.server.metrics import Metrics
from router.server.status import code_of, status_of, withheld

log = logging.getLogger(__name__)
access_log = logging.getLogger("router.server.access")
GENERATIONS = {"/router.v1.InferenceService/Generate", "/router.v1.InferenceService/StreamGenerate"}
LEVELS = {"INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR, "UNAVAILABLE": logging.WARNING}
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Policy:
    """`gated`: refused while loading or draining; `admitted`: takes a place; `watch`: ended by a drain."""

    gated: bool = False
    admitted: bool = False
    watch: bool = False
    logged: bool = False


INFERENCE = Policy(gated=True, admitted=True, logged=True)
ADMIN = Policy(gated=True, logged=True)
ADMIN_WATCH = Policy(gated=True, watch=True, logged=True)
OTHER = Policy()
OTHER_WATCH = Policy(watch=True)

SERVICES = {
    "router.v1.InferenceService": INFERENCE,
    "router.v1.AdapterService": ADMIN,
    "router.v1.ExperimentService": ADMIN,
}
METHODS = {
    "/router.v1.AdapterService/WatchAdapters": ADMIN_WATCH,
    "/router.v1.ExperimentService/RecordOutcomes": ADMIN_WATCH,
    "/grpc.health.v1.Health/Watch": OTHER_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
}


def policy_of(method: str) -> Policy:
    """By method, else by service; health and reflection are open while loading and draining."""
    return METHODS.get(method) or SERVICES.get(method.rpartition("/")[0][1:], OTHER)


class Chain(grpc.aio.ServerInterceptor):
    """The way of every call through the layers, then to its handler."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, max_deadline: float) -> None:
        self._lifecycle, self._metrics, self._max_deadline = lifecycle, metrics, max_deadline

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler; an unknown method has none and stays UNIMPLEMENTED."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        call = Call(handler_call_details.method, request_id_of(handler_call_details.invocation_metadata))
        decoder, encoder = guarded(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary is not None:
            unary = self._unary(call, handler.unary_unary, encoder)
            return grpc.unary_unary_rpc_method_handler(unary, decoder)
        stream = self._stream(call, handler.unary_stream or handler.stream_stream)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(stream, decoder, encoder)
        return grpc.stream_stream_rpc_method_handler(stream, decoder, encoder)

    def _unary(
        self, call: Call, handler: Callable[..., Awaitable[Any]], encode: Callable[[Any], bytes]
    ) -> Callable[..., Any]:
        """The library would encode the response behind all layers, so it is encoded here."""

        async def run(request: Any, context: Context) -> bytes:
            async with AsyncExitStack() as layers:
                await self._enter(layers, call, context)
                response = encode(await handler(decoded(request), context))
                await context.send_initial_metadata(call.headers)
                return response

        return run

    def _stream(self, call: Call, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> None:
            async with AsyncExitStack() as layers:
                await self._enter(layers, call, context)
                streamed = hasattr(request, "__aiter__")
                answer = handler(decoded_stream(request) if streamed else decoded(request), context)
                if not hasattr(answer, "__aiter__"):
                    await answer
                    return
                async for message in answer:
                    await context.write(message)

        return run

    async def _enter(self, layers: AsyncExitStack, call: Call, context: Context) -> None:
        policy = policy_of(call.method)
        CURRENT.set(call)
        await layers.enter_async_context(mapped_errors(call, context))
        layers.enter_context(observed(call, self._metrics, policy.logged))
        if policy.watch:
            await layers.enter_async_context(self._lifecycle.watching())
        else:
            remaining = context.time_remaining()
            await layers.enter_async_context(deadline(call, remaining, self._max_deadline))
        if policy.gated:
            self._lifecycle.gate()
        if policy.admitted:
            layers.enter_context(self._lifecycle.admitted())


# -- The layers, the outermost first.


@asynccontextmanager
async def mapped_errors(call: Call, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Abort the call with the status of what is raised inside."""
    try:
        yield
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception as error:
        _log_withheld(error, call)
        status = status_of(error, call.request_id)
        await context.abort(status.code, status.message, trailing_metadata=status.trailers)


def _log_withheld(error: Exception, call: Call) -> None:
    """Log what the caller is not told. What every call of an hour may end with gets no traceback."""
    if not isinstance(error, RouterError) or code_of(error) is grpc.StatusCode.INTERNAL:
        log.error("internal error", exc_info=error, extra={"fields": call.ids})
    elif withheld(error):
        often = isinstance(error, InvalidRequest | NotFound | Unavailable)
        fields = {**call.ids, "reason": error.reason, "text": error.message, "of": dict(error.metadata)}
        log.warning("not told in full", exc_info=None if often else error, extra={"fields": fields})


@contextmanager
def observed(call: Call, metrics: Metrics, logged: bool) -> Iterator[None]:
    """One log line and the metrics of the call, however it ends; before its status leaves the server."""
    code, reason = "OK", ""
    try:
        yield
    except asyncio.CancelledError:
        code = "DEADLINE_EXCEEDED" if call.expired else "CANCELLED"
        raise
    except grpc.aio.AbortError:
        code = "UNKNOWN"  # a library servicer's own refusal
        raise
    except Exception as error:
        code = code_of(error).name
        reason = error.reason if isinstance(error, RouterError) else type(error).__name__
        raise
    finally:
        metrics.record(call, code, generation=call.method in GENERATIONS)
        if logged:
            line = {"fields": log_fields(call, code, reason)}
            access_log.log(LEVELS.get(code, logging.INFO), "request", extra=line)


def log_fields(call: Call, code: str, error: str) -> dict[str, Any]:
    """What the log line of a call says; no text of prompt or answer unless the operator asked for it."""
    line: dict[str, Any] = {
        **call.ids,
        "method": call.method.rpartition("/")[2],
        "code": code,
        "seconds": round(time.monotonic() - call.started, 6),
    }
    labels = {key: value for key, value in call.labels.items() if key != REFERENCE}  # a user's words
    optional = {"error": error, "finish": call.finish, "prompt": call.prompt, "labels": labels}
    line.update({key: value for key, value in optional.items() if value})
    if (decision := call.decision) is not None:
        line["adapter"] = decision.adapter.name if decision.adapter else "base"
        line["version"] = decision.adapter.version if decision.adapter else ""
        line["reason"] = decision.reason.value
        line["confidence"] = round(decision.confidence, 4)
        line["classifier"] = decision.classifier
        line["route_seconds"] = round(decision.latency, 6)
        if decision.experiment:
            line["experiment"], line["arm"] = decision.experiment, decision.arm
    if (usage := call.usage) is not None:
        line["prompt_tokens"] = usage.prompt_tokens
        line["cached_tokens"] = usage.cached_tokens
        line["completion_tokens"] = usage.completion_tokens
        line["queue_seconds"] = round(usage.queue_time, 6)
        line["first_token_seconds"] = round(usage.time_to_first_token, 6)
    return line


@asynccontextmanager
async def deadline(call: Call, remaining: float | None, cap: float) -> AsyncIterator[None]:
    """Stop what runs inside and raise DeadlineExceeded after `remaining` seconds, or `cap` if less."""
    limit = cap if remaining is None else min(remaining, cap)
    call.deadline = time.monotonic() + limit
    if limit <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    timeout = asyncio.timeout(limit)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded("the deadline passed before the answer was complete") from None


# -- Requests whose bytes are no message.


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


async def decoded_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Each of them."""
    async for request in requests:
        yield decoded(request)
