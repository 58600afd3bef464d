"""The client for asyncio: the same methods, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc
import grpc.aio

from router.client import calls
from router.client.calls import Call, named_as
from router.client.channel import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    Secured,
    call_settings,
    channel_credentials,
    channel_options,
    client_error,
)
from router.v1 import adapters_pb2_grpc, feedback_pb2_grpc, fleet_pb2_grpc, inference_pb2_grpc

P = ParamSpec("P")
T = TypeVar("T")


class AsyncConnection:
    """Makes calls over a channel, with a deadline; ClientError where they fail."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float | None, token: str = "") -> None:
        self.channel, self._settings = channel, call_settings(timeout, token)

    async def answer(self, stub: Any, call: Call[T]) -> T:
        """The one answer."""
        return call.read(await self._message(stub, call))

    async def answers(self, stub: Any, call: Call[Iterable[T]]) -> AsyncIterator[T]:
        """Values as they come; the call is cancelled when the iterator is closed."""
        request_id, settings = self._settings(call.options)
        received = getattr(stub, call.method)(call.request, **settings)
        try:
            async for message in received:
                for value in call.read(message):
                    yield value
        except grpc.RpcError as error:
            raise client_error(error, request_id) from None
        finally:
            received.cancel()

    async def pages(self, stub: Any, call: Call[Iterable[T]]) -> AsyncIterator[T]:
        """The entries of a list; each page is asked for when the loop comes to it."""
        while True:
            page = await self._message(stub, call)
            for value in call.read(page):
                yield value
            if not page.next_page_token:
                return
            call.request.page_token = page.next_page_token

    async def _message(self, stub: Any, call: Call[object]) -> Any:
        request_id, settings = self._settings(call.options)
        try:
            return await getattr(stub, call.method)(call.request, **settings)
        except grpc.RpcError as error:
            raise client_error(error, request_id) from None


class AsyncPart:
    """Methods of one service."""

    service: ClassVar[type[Any]]  # its stub

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection, self.stub = connection, self.service(connection.channel)


def unary(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The method of a call with one answer."""

    @named_as(make)
    async def method(part: AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await part.connection.answer(part.stub, make(*args, **kwargs))

    return method


def streamed(make: Callable[P, Call[Iterable[T]]]) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """The method of a call with a stream of answers."""

    @named_as(make)
    def method(part: AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return part.connection.answers(part.stub, make(*args, **kwargs))

    return method


def paged(make: Callable[P, Call[Iterable[T]]]) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """The method of a list that is read page by page."""

    @named_as(make)
    def method(part: AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return part.connection.pages(part.stub, make(*args, **kwargs))

    return method


def listed(
    make: Callable[P, Call[Iterable[T]]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, tuple[T, ...]]]:
    """The method of a list whose pages are all read at once."""

    @named_as(make)
    async def method(part: AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> tuple[T, ...]:
        found = part.connection.pages(part.stub, make(*args, **kwargs))
        return tuple([one async for one in found])

    return method


class AsyncAdapters(AsyncPart):
    """`client.adapters`. Names are NAME (the default version), NAME@VERSION or resource names."""

    service = adapters_pb2_grpc.AdapterServiceStub
    list = listed(calls.list_adapters)
    plugins = unary(calls.plugins)
    get = unary(calls.get)
    load = unary(calls.load)
    unload = unary(calls.unload)
    set_default = unary(calls.set_default)
    reset_default = unary(calls.reset_default)
    watch = streamed(calls.watch)


class AsyncFeedbacks(AsyncPart):
    """`client.feedback`: what users think of answers."""

    service = feedback_pb2_grpc.FeedbackServiceStub
    record = unary(calls.record_feedback)
    list = paged(calls.list_feedback)
    delete = unary(calls.delete_feedback)


class AsyncReplicas(AsyncPart):
    """`client.replicas`. A server without replicas answers FAILED_PRECONDITION."""

    service = fleet_pb2_grpc.FleetServiceStub
    list = unary(calls.list_replicas)
    drain = unary(calls.drain)


class AsyncClient(AsyncConnection, AsyncPart):
    """Talks to one server from one event loop; close it or use it in an `async with`.

    A stream that may be left early belongs in `contextlib.aclosing`, which cancels the call at once.
    """

    service = inference_pb2_grpc.InferenceServiceStub
    generate = unary(calls.generate)
    stream = streamed(calls.stream)
    route = unary(calls.route)
    count_tokens = unary(calls.count_tokens)

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **secured: Unpack[Secured],
    ) -> None:
        credentials, options = channel_credentials(target, secured), channel_options(target)
        if credentials is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            channel = grpc.aio.secure_channel(target, credentials, options=options)
        AsyncConnection.__init__(self, channel, timeout, secured.get("token", ""))
        AsyncPart.__init__(self, self)
        self.adapters, self.feedback, self.replicas = (
            AsyncAdapters(self),
            AsyncFeedbacks(self),
            AsyncReplicas(self),
        )

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
