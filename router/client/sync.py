"""The client for threads: the methods of `calls`, made callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

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


class Connection:
    """Makes calls over a channel, with a deadline; ClientError where they fail."""

    def __init__(self, channel: grpc.Channel, timeout: float | None, token: str = "") -> None:
        self.channel, self._settings = channel, call_settings(timeout, token)

    def answer(self, stub: Any, call: Call[T]) -> T:
        """The one answer."""
        return call.read(self._message(stub, call))

    def answers(self, stub: Any, call: Call[Iterable[T]]) -> Iterator[T]:
        """Values as they come; the call is cancelled when the iterator is closed or dropped."""
        request_id, settings = self._settings(call.options)
        received = getattr(stub, call.method)(call.request, **settings)
        try:
            for message in received:
                yield from call.read(message)
        except grpc.RpcError as error:
            raise client_error(error, request_id) from None
        finally:
            received.cancel()

    def pages(self, stub: Any, call: Call[Iterable[T]]) -> Iterator[T]:
        """The entries of a list; each page is asked for when the loop comes to it."""
        while True:
            page = self._message(stub, call)
            yield from call.read(page)
            if not page.next_page_token:
                return
            call.request.page_token = page.next_page_token

    def _message(self, stub: Any, call: Call[object]) -> Any:
        request_id, settings = self._settings(call.options)
        try:
            return getattr(stub, call.method)(call.request, **settings)
        except grpc.RpcError as error:
            raise client_error(error, request_id) from None


class Part:
    """Methods of one service."""

    service: ClassVar[type[Any]]  # its stub

    def __init__(self, connection: Connection) -> None:
        self.connection, self.stub = connection, self.service(connection.channel)


def unary(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """The method of a call with one answer."""

    @named_as(make)
    def method(part: Part, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return part.connection.answer(part.stub, make(*args, **kwargs))

    return method


def streamed(make: Callable[P, Call[Iterable[T]]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The method of a call with a stream of answers."""

    @named_as(make)
    def method(part: Part, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return part.connection.answers(part.stub, make(*args, **kwargs))

    return method


def paged(make: Callable[P, Call[Iterable[T]]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The method of a list that is read page by page."""

    @named_as(make)
    def method(part: Part, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return part.connection.pages(part.stub, make(*args, **kwargs))

    return method


def listed(make: Callable[P, Call[Iterable[T]]]) -> Callable[Concatenate[Any, P], tuple[T, ...]]:
    """The method of a list whose pages are all read at once."""

    @named_as(make)
    def method(part: Part, /, *args: P.args, **kwargs: P.kwargs) -> tuple[T, ...]:
        return tuple(part.connection.pages(part.stub, make(*args, **kwargs)))

    return method


class Adapters(Part):
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


class Feedbacks(Part):
    """`client.feedback`: what users think of answers."""

    service = feedback_pb2_grpc.FeedbackServiceStub
    record = unary(calls.record_feedback)
    list = paged(calls.list_feedback)
    delete = unary(calls.delete_feedback)


class Replicas(Part):
    """`client.replicas`. A server without replicas answers FAILED_PRECONDITION."""

    service = fleet_pb2_grpc.FleetServiceStub
    list = unary(calls.list_replicas)
    drain = unary(calls.drain)


class Client(Connection, Part):
    """Talks to one server. Thread-safe; close it or use it in a `with`.

    Example:
        with Client("127.0.0.1:50051") as client:
            answer = client.generate("Translate to French: cheese", max_tokens=20)
            print(answer.decision.adapter, answer.text)
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
            channel = grpc.insecure_channel(target, options=options)
        else:
            channel = grpc.secure_channel(target, credentials, options=options)
        Connection.__init__(self, channel, timeout, secured.get("token", ""))
        Part.__init__(self, self)
        self.adapters, self.feedback, self.replicas = Adapters(self), Feedbacks(self), Replicas(self)

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
