"""Calls by HTTP: `HttpCall` reads and writes them over ASGI, `application` serves routes together with their
rows of the policy table."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route as StarletteRoute

from router.access.access import Credentials
from router.access.hosts import Hosts
from router.errors import QuotaExceeded, Unavailable, WrongContentType
from router.server.bodies import Decoder, json_decoder, too_large
from router.server.call import OTHER_METHOD, REQUEST_ID_KEY, Call, Endpoint, NotServed, request_id_of
from router.server.policy import UNSERVED, Policy, check_rows
from router.server.status import code_of, first_field, http_status, message_of, reason_of
from router.types import Decision

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
_CONVERTER = re.compile(r":\w+(?=})")
METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"))
EXPOSED = (  # headers of answers that a page of another origin may read
    REQUEST_ID_KEY,
    "retry-after",
    "x-router-adapter",
    "x-router-confidence",
    "x-router-reason",
    "x-router-response-id",
)
JSON, EVENTS = "application/json", "text/event-stream"
UNKNOWN_HOST = (
    "this server is not known by the name it was asked for; add that name to `http_hosts`, or ask for "
    "localhost or an address"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: bytes = b""
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


CODES: Mapping[str, str] = {
    "ADAPTER_NOT_FOUND": "model_not_found",
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "QUOTA": "rate_limit_exceeded",
    "TOKEN_INVALID": "invalid_api_key",
    "TOKEN_MISSING": "invalid_api_key",
}
"""What clients of OpenAI's API look for, by our reason; any other code is the reason in lower case."""


def error_json(status: int, reason: str, message: str, param: str) -> dict[str, Any]:
    """The body of an error, in the shape of OpenAI's API; `reason` is what gRPC clients get."""
    kind = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = CODES.get(reason, reason.lower())
    error = {"message": message, "type": kind, "param": param or None, "code": code, "reason": reason}
    return {"error": error}


@dataclass(frozen=True, slots=True)
class Route:
    """A route: `verb` and `path`, which may have {parameters}.

    `answer(request, call)` returns a `Reply` or what is sent as JSON. For an answer in parts it calls
    `await call.begin()` and `await call.write(event)`, and returns None. `decode` makes `request` of the
    bytes of a JSON body, or is a `Decoder`; without it the route has no body and `request` is None.
    `error_json` makes the body of an error from HTTP status, reason, message and field. `call` is the class
    of its calls. `operation` is the method of a service that the route carries out, whose name permissions
    and the audit have. `title` is `NAME: WHAT IS THERE`, for the page of the address; without it the route is
    not listed. `guarded`: it checks names of hosts itself, and pages of other origins may not call it.
    """

    verb: str
    path: str
    answer: Callable[[Any, Any], Awaitable[Any]]
    decode: Callable[[bytes], Any] | None = None
    error_json: Callable[[int, str, str, str], Mapping[str, Any]] = error_json
    call: Callable[..., HttpCall] | None = None
    operation: str = ""
    title: str = ""
    guarded: bool = False

    @property
    def name(self) -> str:
        """Of its row in the policy table."""
        return route_name(self.verb, self.path)


def route_name(verb: str, path: str) -> str:
    """Of a row in the policy table: parameters by their names alone.

    >>> route_name("GET", "/v1/models/{model:path}")
    'GET /v1/models/{model}'
    """
    return f"{verb} {_CONVERTER.sub('', path)}"


class HttpCall(Call):
    """A call in the form of ASGI."""

    transport = "http"
    __slots__ = (
        "_answer_headers",
        "_began",
        "_ended",
        "_receive",
        "_route",
        "_send",
        "_whole",
        "scope",
    )

    def __init__(self, route: Route, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        metadata = metadata_of(scope)
        super().__init__(endpoint, request_id_of(metadata), peer_of(scope), metadata)
        self.scope, self._receive, self._send, self._route = scope, receive, send, route
        self._answer_headers: dict[str, str] = {}
        self._began = self._ended = False
        self._whole = asyncio.Event()  # the body was read, so that what comes now is no part of it
        if endpoint.decode is None:
            self._whole.set()

    # -- What the caller sent

    def header(self, name: str) -> str:
        """The value of a header, '' where there is none; names in lower case."""
        return next(iter(self.sent_as(name)), "")

    @property
    def path(self) -> str:
        """What was asked for, without what comes behind `?`."""
        return str(self.scope["path"])

    @property
    def scheme(self) -> str:
        """Of the connection."""
        return str(self.scope.get("scheme", ""))

    def path_parameter(self, name: str) -> str:
        """Of the route."""
        return str(self.scope.get("path_params", {}).get(name, ""))

    @property
    def content_type(self) -> str:
        """Of the body, in lower case and without parameters; '' where there is none."""
        return self.header("content-type").partition(";")[0].strip().lower()

    def credentials(self) -> Credentials:
        """Token and certificate."""
        shown = self.scope.get("state", {}).get("certificate", b"")
        return Credentials(self.sent_as("authorization"), shown, headers=self.metadata)

    def check(self) -> None:
        """Raises WrongContentType for a body that is not JSON, before anything of it is read.

        A page of another origin can send other types without asking first, and a body without a type, too.
        """
        if not is_json(self.content_type):
            raise WrongContentType(f"{JSON}: add the header 'Content-Type: {JSON}'")
        if self.header("content-encoding").lower() not in ("", "identity"):
            raise WrongContentType("identity: send the body uncompressed", "content-encoding")

    async def read(self) -> bytes | bytearray | None:
        """The whole body; of one that is too large, more than it may have. Raises what `check` raises, and
        BodyTooLarge for one that says so beforehand."""
        if self._whole.is_set():
            return None
        self.check()
        length = self.header("content-length")
        if length.isdecimal() and int(length) > self.most:
            raise too_large(length, self.most)  # none of it is read
        body = bytearray()  # not parts that are joined, which would be there twice
        while len(body) <= self.most:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError  # as gRPC ends the call of a client that has left
            body += message.get("body", b"")
            if not message.get("more_body", False):
                self._whole.set()
                break
        return body

    async def left(self) -> None:
        """Returns when the client has left, which shows once its body was read."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # -- What it gets

    def encode(self, answer: Any) -> Reply:
        """The reply that it is, else JSON."""
        return answer if isinstance(answer, Reply) else Reply(json.dumps(answer).encode())

    async def begin(self) -> None:
        """Send headers: events follow as they come."""
        await self._start(200, EVENTS, self._decision_headers())

    async def write(self, message: bytes) -> None:
        """Send events."""
        self.writing_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": message, "more_body": True})
        self.writing_since = 0.0

    async def reply(self, encoded: Reply) -> None:
        """Send headers and body."""
        self.writing_since = time.monotonic()
        headers = {**self._decision_headers(), **encoded.headers, "content-length": str(len(encoded.body))}
        await self._start(encoded.status, encoded.content_type, headers)
        await self._end(encoded.body)
        self.writing_since = 0.0

    async def refuse(self, error: Exception) -> None:
        """End with an error: as the answer, or where one has begun, as its last event."""
        if self._ended:
            return
        reason = reason_of(error)
        status = http_status(code_of(error), reason)
        named = status, reason, message_of(error), first_field(error)
        if self._began:
            await self._end(self.failure(*named))
            return
        content_type, body = self.refusal(*named)
        headers = {"x-request-id": self.request_id, "content-length": str(len(body))}
        if self.answer_id:
            headers["x-router-response-id"] = self.answer_id
        if isinstance(error, Unavailable | QuotaExceeded) and error.retry_after:
            headers["retry-after"] = str(max(1, round(error.retry_after)))
        if status == 408:
            headers["connection"] = "close"  # what comes yet is the rest of that body
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        await self._start(status, content_type, headers)
        await self._end(body)

    async def close(self) -> None:
        """No more events come."""
        if self._began and not self._ended:
            await self._end(b"")

    def refusal(self, status: int, reason: str, message: str, field: str) -> tuple[str, bytes]:
        """The answer that an error is: its type and its body."""
        return JSON, json.dumps(self._route.error_json(status, reason, message, field)).encode()

    def failure(self, status: int, reason: str, message: str, field: str) -> bytes:
        """The last event of a stream that ends with an error."""
        return b"data: " + self.refusal(status, reason, message, field)[1] + b"\n\n"

    def _decision_headers(self) -> dict[str, str]:
        return dict(self.headers) | decision_headers(self.answer.decision, self.response_id)

    async def _start(self, status: int, content_type: str, more: Mapping[str, str]) -> None:
        self._began, self.status = True, status
        headers = {"content-type": content_type, "cache-control": "no-store"} | self._answer_headers
        headers |= {**more, "x-content-type-options": "nosniff"}
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _end(self, data: bytes) -> None:
        self._ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def peer_of(scope: Scope) -> str:
    """The connection, as `Call.peer` has it."""
    host, port = scope.get("client") or ("unknown", 0)
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def is_json(content_type: str) -> bool:
    """Whether it is JSON, or a type based on it.

    >>> is_json("application/json"), is_json("application/merge-patch+json"), is_json("text/plain")
    (True, True, False)
    """
    kind, _, of = content_type.partition("/")
    return content_type == JSON or (kind == "application" and of.endswith("+json"))


def decision_headers(decision: Decision | None, response_id: str) -> dict[str, str]:
    """What was decided, beside the adapter, and the id to record outcomes under."""
    if decision is None:
        return {}
    return {
        "x-router-confidence": f"{decision.confidence:.4f}",
        "x-router-reason": decision.reason.value,
        "x-router-response-id": response_id,
    }


# -- Routes


class Serves(Protocol):
    """What a call goes through: the interceptors, or nothing."""

    async def serve(self, endpoint: Endpoint, call: Call) -> None:
        """Answer one call."""
        ...


class RouteApp:
    """An ASGI application: one route, whose requests are calls. With `hosts` it answers under those names
    only: a page that a browser on this machine loads may have its own name point here, and would read what is
    answered."""

    def __init__(
        self, interceptors: Serves, route: Route, policy: Policy, hosts: Hosts | None = None
    ) -> None:
        self._interceptors, self._route, self._hosts = interceptors, route, hosts
        decode = route.decode
        if decode is not None and not isinstance(decode, Decoder):
            decode = json_decoder(decode)
        self._endpoint = Endpoint(
            route.name, policy, route.answer, decode, streams=True, operation=route.operation
        )
        self._call = route.call or HttpCall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        names = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if self._hosts is not None and not all(map(self._hosts.know, names)):  # a browser always sends one
            await refusing(self._interceptors, UnknownHost(UNKNOWN_HOST))(scope, receive, send)
            return
        call = self._call(self._route, self._endpoint, scope, receive, send)
        await until_gone(self._interceptors.serve(self._endpoint, call), call)
        await call.close()


async def until_gone(work: Awaitable[None], call: HttpCall) -> None:
    """Do the work; a client that leaves takes it along."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(call.left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait((working, leaving))
    if not working.cancelled():
        working.result()


class WithoutSlash:
    """An ASGI application to which a path with a slash at its end is the path without it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        path = scope.get("path", "")
        if path.endswith("/") and path != "/":
            scope["path"] = path.rstrip("/") or "/"
        await self._app(scope, receive, send)


def application(
    interceptors: Serves,
    routes: Sequence[Route],
    rows: Mapping[str, Policy],
    *,
    hosts: Hosts | None = None,
    origins: Sequence[str] = (),
) -> App:
    """The ASGI application of a listener.

    `rows` has the policy of each route, by `VERB /PATH`. With `hosts` it answers under those names only.
    Pages of `origins` may call it from a browser (CORS), without cookies. Neither holds for routes that are
    `guarded`. Raises ConfigError for a route without a policy.
    """
    check_rows((route.name for route in routes), rows)
    shared = partial(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # clients send many of their own
        expose_headers=EXPOSED,
        max_age=600,
    )
    served = []
    for route in routes:
        app: Any = RouteApp(interceptors, route, rows[route.name], None if route.guarded else hosts)
        if origins and not route.guarded:
            app = shared(app)
        served.append(StarletteRoute(route.path, app, methods=[route.verb]))

    async def not_served(request: Request, error: Any) -> App:
        if origins and request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            return outside(interceptors, partial(allowed, shared(request.app)))
        text = f"{request.method} {request.url.path} is not served here; GET / lists what is"[:300]
        kind = PathNotServed if error.status_code == 404 else MethodNotAllowed
        return refusing(interceptors, kind(text), error.headers or {})

    handlers: Any = {404: not_served, 405: not_served}
    made = Starlette(routes=served, exception_handlers=handlers)
    made.router.redirect_slashes = False  # a redirect would be an answer that nothing records
    return WithoutSlash(made)


async def allowed(shared: CORSMiddleware, request: None, call: HttpCall) -> Reply:
    """What a browser asks before it lets a page of another origin send its request."""
    made = shared.preflight_response(Headers(scope=call.scope))
    headers = {name: value for name, value in made.headers.items() if name != "content-length"}
    return Reply(bytes(made.body), headers.pop("content-type"), made.status_code, headers)


# -- Requests that reach no route.


class PathNotServed(NotServed):
    """No route has the path."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class MethodNotAllowed(NotServed):
    """The routes of the path have other methods."""

    reason = "METHOD_NOT_ALLOWED"


class UnknownHost(NotServed):
    """The request names another server."""

    code = "PERMISSION_DENIED"
    reason = "NOT_THIS_PAGE"


def refusing(
    interceptors: Serves, error: NotServed, headers: Mapping[str, str] = MappingProxyType({})
) -> App:
    """An ASGI application that refuses every request."""

    async def answer(request: None, call: HttpCall) -> None:
        raise error

    return outside(interceptors, answer, headers)


def outside(
    interceptors: Serves,
    answer: Callable[[Any, Any], Awaitable[Any]],
    headers: Mapping[str, str] = MappingProxyType({}),
) -> App:
    """An ASGI application that answers every request, by the way of all calls, so that they are recorded."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        verb = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        made = partial(UnservedCall, headers)
        await RouteApp(interceptors, Route(verb, "", answer, call=made), UNSERVED)(scope, receive, send)

    return serve


class UnservedCall(HttpCall):
    """A call that no route serves."""

    def __init__(self, headers: Mapping[str, str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answer_headers.update(headers)
        self.unserved = self.path or "?"  # where what came could not be read


def metadata_of(scope: Scope) -> tuple[tuple[str, str], ...]:
    """The headers of a request."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
