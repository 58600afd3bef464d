"""Calls by gRPC: `GrpcCall` reads and writes them, `GrpcServer` takes services together with their rows of
the policy table, and `status_of` makes a status of an exception: code, message, and google.rpc details in the
trailers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2

from router.access.access import Credentials
from router.conversion import duration
from router.errors import (
    AlreadyExists,
    ConfigError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.server.call import (
    OTHER_METHOD,
    Call,
    Endpoint,
    NotServed,
    request_id_of,
)
from router.server.interceptors import Interceptors
from router.server.policy import UNSERVED, Policy, ServiceSpec, check_rows
from router.server.status import (
    INTERNAL,
    clip,
    code_of,
    message_of,
    public_message,
    reason_of,
)

CERTIFICATE = "x509_pem_cert"  # of the client, in the library's context
GONE_SECONDS = 0.1  # for gRPC to end a call whose deadline has passed
HEADERS_SECONDS = 1.0  # for headers to leave when their call has been cut off
DOMAIN = "lora-router"
CODES = {code.name: code for code in grpc.StatusCode}
MAX_DETAILS, MAX_METADATA = 3584, 16
ENTRY_BYTES = 3  # of an entry's tag and length; one with two texts of MAX_FIELD bytes has less than 16 KiB
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
T = TypeVar("T")


class GrpcCall(Call):
    """A call in the library's `context`. To the library every method is a stream of bytes, so that nothing of
    a body is read before the interceptors have let the call in; clients notice nothing of it."""

    transport = "grpc"
    __slots__ = ("_encode", "context")

    def __init__(self, endpoint: Endpoint, context: Context, encode: Callable[[Any], bytes]) -> None:
        metadata = context.invocation_metadata() or ()
        super().__init__(endpoint, request_id_of(metadata), context.peer(), metadata)
        self.context, self._encode = context, encode

    def credentials(self) -> Credentials:
        """Token and certificate."""
        certificate = next(iter(self.context.auth_context().get(CERTIFICATE, ())), b"")
        return Credentials(self.sent_as("authorization"), certificate, headers=self.metadata)

    def time_remaining(self) -> float | None:
        """Until the caller's own deadline."""
        return self.context.time_remaining()

    async def read(self) -> bytes | None:
        """The next message."""
        data: Any = await whole(self.context.read())
        return None if data is grpc.aio.EOF else data

    def encode(self, answer: Any) -> bytes:
        """A message as bytes."""
        return self._encode(answer)

    async def begin(self) -> None:
        """Send initial metadata. A call that is cut off meanwhile waits until they are sent.

        gRPC takes no error status while they are on their way: the caller would wait for one until the
        deadline.
        """
        sending = asyncio.ensure_future(self.context.send_initial_metadata(self.headers))
        try:
            await whole(sending)
        except asyncio.CancelledError:
            await asyncio.wait((sending,), timeout=HEADERS_SECONDS)
            raise

    async def write(self, message: Any) -> None:
        """Send a message."""
        encoded = self._encode(message)
        self.writing_since = time.monotonic()
        await self.context.write(encoded)
        self.writing_since = 0.0

    async def reply(self, encoded: bytes) -> None:
        """Send initial metadata and the one message."""
        await self.begin()
        self.writing_since = time.monotonic()
        await whole(self.context.write(encoded))
        self.writing_since = 0.0

    async def refuse(self, error: Exception) -> None:
        """Abort with its status."""
        status = status_of(error, self.request_id, self.answer_id)
        left = self.context.time_remaining()
        if isinstance(error, DeadlineExceeded) and left is not None and left < GONE_SECONDS:
            # The caller's own deadline: gRPC ends the call itself, and a status that comes too late for it
            # is never freed. So it gets a moment, in which this is cancelled.
            await asyncio.sleep(GONE_SECONDS)
        with suppress(grpc.aio.InternalError):  # the caller has left
            await whole(self.context.abort(status.code, status.message, trailing_metadata=status.trailers))


async def whole(operation: Awaitable[T]) -> T:
    """Await an operation of gRPC. A caller that is cut off meanwhile leaves it to end by itself.

    grpcio frees what an operation holds when its coroutine goes on after it: one that is cancelled instead
    keeps some 100 bytes for ever.
    """
    running = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        _RESTING.add(running)
        running.add_done_callback(_rested)
        raise


_RESTING: set[asyncio.Future[Any]] = set()  # an event loop keeps no task alive


def _rested(operation: asyncio.Future[Any]) -> None:
    _RESTING.discard(operation)
    if not operation.cancelled():
        operation.exception()  # nobody else asks


class GrpcServer:
    """The gRPC address of a server. `endpoints` are the methods of its services, by /SERVICE/METHOD."""

    def __init__(self, interceptors: Interceptors, options: Iterable[tuple[str, Any]]) -> None:
        self._interceptors = interceptors
        self.endpoints: dict[str, Endpoint] = {}
        self.main = grpc.aio.server(options=tuple(options))

    def add_service(self, spec: ServiceSpec) -> None:
        """Serve it. Raises ConfigError for a method without a row."""
        for service, handlers in methods_of(spec.add, spec.servicer).items():
            names = {name: f"/{service}/{name}" for name in handlers}
            check_rows(names.values(), spec.rows)
            made: dict[str, Handler] = {}
            for name, handler in handlers.items():
                endpoint = endpoint_of(names[name], handler, spec.rows[names[name]])
                self.endpoints[endpoint.method] = endpoint
                behaviour: Any = partial(self._run, endpoint, handler.response_serializer)
                made[name] = grpc.stream_stream_rpc_method_handler(behaviour)
            # By name, so that a flood of one method fills no other's queue.
            self.main.add_registered_method_handlers(service, made)

    async def _run(self, endpoint: Endpoint, encode: Any, _: Any, context: Context) -> None:
        await self._interceptors.serve(endpoint, GrpcCall(endpoint, context, encode))

    async def start(self) -> None:
        """Answer calls."""
        # The last: asked for what no service has.
        self.main.add_generic_rpc_handlers((_UnknownMethods(self._interceptors),))
        await self.main.start()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls; those that run have so many seconds to end."""
        await self.main.stop(grace)


class _UnknownMethods(grpc.GenericRpcHandler):
    """Refuses the methods that no service has, by the way of all calls, so that they are seen."""

    def __init__(self, interceptors: Interceptors) -> None:
        self._interceptors = interceptors

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of any method."""
        asked = str(handler_call_details.method)

        async def refuse(request: None, call: Call) -> None:
            raise NotServed(f"{clip(asked)} is not served here")

        endpoint = Endpoint(OTHER_METHOD, UNSERVED, refuse, None)

        async def run(_: Any, context: Context) -> None:
            call = GrpcCall(endpoint, context, bytes)
            call.unserved = asked
            await self._interceptors.serve(endpoint, call)

        return grpc.stream_stream_rpc_method_handler(run)


def methods_of(add: Callable[[Any, Any], None], servicer: Any) -> Mapping[str, Mapping[str, Handler]]:
    """What the generated `add_...Servicer_to_server` registers, by service. Raises ConfigError."""
    found = _GeneratedMethods()
    add(servicer, found)
    if not found.services:
        name = getattr(add, "__name__", repr(add))
        raise ConfigError(f"{name} registers no method: generate it with grpcio-tools 1.64 or later")
    return found.services


class _GeneratedMethods:
    """Takes what generated code adds to a server."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Handler]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """The same methods in another form."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Methods by name."""
        self.services[service] = handlers


def endpoint_of(method: str, handler: Handler, policy: Policy) -> Endpoint:
    """The endpoint of a method that generated code describes."""
    answer: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return Endpoint(
        method,
        policy,
        answer,
        handler.request_deserializer,
        handler.request_streaming,
        handler.response_streaming,
    )


# -- Exceptions as statuses.


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """What `context.abort` needs."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def status_of(error: Exception, request_id: str, response_id: str = "") -> GrpcStatus:
    """Code, message and trailers; all of it stays under gRPC's 8 KiB for metadata."""
    ids = {"request_id": request_id} | ({"response_id": response_id} if response_id else {})
    code, message = CODES[code_of(error)], message_of(error)
    details: list[Any] = []
    if isinstance(error, RouterError) and code.name != INTERNAL:
        details += [error_info(error.reason, error.metadata, ids), *details_of(error)]
    else:
        details.append(error_info(reason_of(error), {}, ids))
    details.append(rpc.RequestInfo(request_id=request_id))
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", _packed(code, message, details)),
        ("x-request-id", request_id),
    ]
    if isinstance(error, Unavailable):
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    return GrpcStatus(code, message, tuple(trailers))


def _packed(code: grpc.StatusCode, message: str, details: list[Any]) -> bytes:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


# -- What each class of the error tree adds to ErrorInfo.


def details_of(error: RouterError) -> list[Any]:
    """What the class and its bases add."""
    found: list[Any] = []
    told, resource = clip(public_message(error)), clip(error.metadata.get("resource", ""))
    if isinstance(error, InvalidRequest):
        found.append(_bad_request(error))
    if isinstance(error, NotFound):
        kind, name = error.resource_type, clip(error.name)
        found.append(rpc.ResourceInfo(resource_type=kind, resource_name=name, description="not found"))
    if isinstance(error, AlreadyExists):
        found.append(rpc.ResourceInfo(resource_name=resource, description="exists already"))
    if isinstance(error, FailedPrecondition):
        failed = rpc.PreconditionFailure.Violation(type=error.reason, subject=resource, description=told)
        found.append(rpc.PreconditionFailure(violations=[failed]))
    if isinstance(error, ResourceExhausted | QuotaExceeded):
        subject = error.holder if isinstance(error, QuotaExceeded) else "memory"
        used_up = rpc.QuotaFailure.Violation(subject=subject, description=told)
        found.append(rpc.QuotaFailure(violations=[used_up]))
    if isinstance(error, Unavailable | QuotaExceeded) and error.retry_after is not None:
        found.append(rpc.RetryInfo(retry_delay=duration(error.retry_after)))
    return found


def error_info(reason: str, metadata: Mapping[str, str], ids: Mapping[str, str]) -> rpc.ErrorInfo:
    """The detail every error has. `ids` are those of the call."""
    pairs = {clip(key, 63): clip(value) for key, value in list(metadata.items())[:MAX_METADATA]}
    return rpc.ErrorInfo(reason=reason, domain=DOMAIN, metadata={**pairs, **ids})


def _bad_request(error: InvalidRequest) -> rpc.BadRequest:
    """The first violations, as many as MAX_DETAILS bytes hold."""
    detail, size = rpc.BadRequest(), 0
    for v in error.violations:
        entry = rpc.BadRequest.FieldViolation(field=clip(v.field), description=clip(v.description))
        size += entry.ByteSize() + ENTRY_BYTES
        if size > MAX_DETAILS:
            break
        detail.field_violations.append(entry)
    return detail
