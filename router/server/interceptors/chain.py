"""The way of every call through the layers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import grpc

from router.server.interceptors.call import CURRENT, Call, request_id_of
from router.server.interceptors.deadline import deadline
from router.server.interceptors.errors import decoded, guarded, mapped_errors
from router.server.interceptors.observe import Observer
from router.server.interceptors.policy import policy_of
from router.server.lifecycle import Lifecycle

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Chain(grpc.aio.ServerInterceptor):
    """Request id, errors, log and metrics, drain, deadline, admission, in this order, then the handler."""

    def __init__(self, lifecycle: Lifecycle, observer: Observer, max_deadline: float) -> None:
        self._lifecycle, self._observer, self._max_deadline = lifecycle, observer, max_deadline

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler; an unknown method has none and stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._wrapped(handler, handler_call_details)

    def _wrapped(self, handler: Any, details: grpc.HandlerCallDetails) -> Handler:
        call = Call(details.method, request_id_of(details.invocation_metadata))
        decoder, encoder = guarded(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary is not None:
            unary = self._unary(call, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(unary, decoder, encoder)
        stream = self._stream(call, handler.unary_stream or handler.stream_stream)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(stream, decoder, encoder)
        return grpc.stream_stream_rpc_method_handler(stream, decoder, encoder)

    def _unary(self, call: Call, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> Any:
            async with AsyncExitStack() as layers:
                await self._enter(layers, call, context)
                response = await handler(decoded(request), context)
                await context.send_initial_metadata(call.headers)
                return response

        return run

    def _stream(self, call: Call, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> None:
            async with AsyncExitStack() as layers:
                await self._enter(layers, call, context)
                answer = handler(_decoded(request), context)
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
        layers.enter_context(self._observer.observed(call, policy.logged))
        if policy.watch:
            await layers.enter_async_context(self._lifecycle.watching())
        else:
            remaining = context.time_remaining()
            await layers.enter_async_context(deadline(call, remaining, self._max_deadline))
        if policy.gated:
            self._lifecycle.gate()
        if policy.admitted:
            layers.enter_context(self._lifecycle.admitted())


def _decoded(request: Any) -> Any:
    return _decoded_stream(request) if hasattr(request, "__aiter__") else decoded(request)


async def _decoded_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield decoded(request)
