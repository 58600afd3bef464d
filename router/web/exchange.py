"""An HTTP request and its answer, in the form in which the layers know calls.

So every check, bound, log line, metric and audit entry of a gRPC call is that of an HTTP request, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import grpc
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2

from router.errors import WrongContentType
from router.server.call import current_call
from router.server.layers import CERTIFICATE
from router.types import Decision

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ErrorBody = Callable[[int, str, str, str], dict[str, Any]]  # HTTP status, reason, message, field

JSON, EVENTS = "application/json", "text/event-stream"
HTTP_STATUS: Mapping[str, int] = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 400,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
STATUS_OF_REASON = {"BODY_TOO_LARGE": 413, "UNSUPPORTED_MEDIA_TYPE": 415, "BODY_INCOMPLETE": 408}


class Exchange:
    """The part of `grpc.aio.ServicerContext` that layers and servicers use, over ASGI.

    `most` bytes of a body are read, and one more to tell that it is larger; 0: the request has no body.
    Messages that are written are bytes of the body; `events` says that they are sent as they come, as
    server-sent events. `error_body` makes the body of an error.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int, error_body: ErrorBody) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._most, self._error_body = most, error_body
        self._metadata = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        self._headers: dict[str, str] = {}
        self._began = self._ended = self._read = False
        self._whole = asyncio.Event()  # the body was read, so that what comes now is no part of it
        self.events = False

    # -- What the caller sent

    def header(self, name: str) -> str:
        """The value of a header, '' where there is none; names in lower case."""
        return next((value for key, value in self._metadata if key == name), "")

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers, their names in lower case."""
        return self._metadata

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """The client's certificate, if it showed one."""
        shown = self._scope.get("state", {}).get("certificate", b"")
        return {CERTIFICATE: (shown,)} if shown else {}

    def peer(self) -> str:
        """In the form of gRPC."""
        host, port = self._scope.get("client") or ("unknown", 0)
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def time_remaining(self) -> float | None:
        """HTTP has no deadline: the server's own counts."""
        return None

    def check(self) -> None:
        """Raises WrongContentType for a body that is not JSON, before anything of it is read.

        A page of another origin can send other types without asking first, and a body without a type, too.
        """
        if self._most and not is_json(self.content_type):
            raise WrongContentType(f"{JSON}: add the header 'Content-Type: {JSON}'")

    @property
    def content_type(self) -> str:
        """Of the body, in lower case and without parameters; '' where there is none."""
        return self.header("content-type").partition(";")[0].strip().lower()

    async def read(self) -> Any:
        """The whole body; of one that is too large, more than it may have. Raises what `check` raises."""
        if self._read:
            return grpc.aio.EOF
        self._read = True
        self.check()
        length = self.header("content-length")
        if length.isdecimal() and int(length) > self._most:
            return bytes(self._most + 1)  # none of it is read
        body = bytearray()  # not parts that are joined, which would be there twice
        while len(body) <= self._most:
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

    def path_parameter(self, name: str) -> str:
        """Of the route."""
        return str(self._scope.get("path_params", {}).get(name, ""))

    # -- What it gets

    def stream(self) -> None:
        """The answer will be events, sent as they come."""
        self.events = True

    async def send_initial_metadata(self, headers: Iterable[tuple[str, str]]) -> None:
        """Headers: these, and what was decided. Events begin now, a whole answer when it is there."""
        self._headers |= dict(headers)
        self._headers |= decision_headers(current_call().decision, current_call().response_id)
        if self.events:
            await self._start(200, EVENTS, None)

    async def write(self, data: bytes) -> None:
        """The whole body, or the next events."""
        if self.events:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            return
        await self._start(200, JSON, len(data))
        await self._end(data)

    async def finish(self) -> None:
        """No more events come."""
        if self.events and self._began and not self._ended:
            await self._end(b"")

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, Any]] = ()
    ) -> None:
        """End with an error: as the answer, or where one has begun, as its last event."""
        reason, field, retry_after = read_details(trailing_metadata)
        status = STATUS_OF_REASON.get(reason) or HTTP_STATUS.get(code.name, 500)
        if self._ended:
            return
        content_type, body = self._refusal(status, reason or code.name, details, field)
        if self._began:
            await self._end(b"data: " + body + b"\n\n")
            return
        self._headers |= {key: value for key, value in trailing_metadata if key == "x-request-id"}
        if retry_after:
            self._headers["retry-after"] = str(max(1, round(retry_after)))
        if status == 408:
            self._headers["connection"] = "close"  # what comes yet is the rest of that body
        if status == 401:
            self._headers["www-authenticate"] = "Bearer"
        await self._start(status, content_type, len(body))
        await self._end(body)

    def _refusal(self, status: int, reason: str, message: str, field: str) -> tuple[str, bytes]:
        """The answer that an error is: its type and its body."""
        return JSON, json.dumps(self._error_body(status, reason, message, field)).encode()

    async def _start(self, status: int, content_type: str, length: int | None) -> None:
        self._began = True
        headers = {"content-type": content_type, "cache-control": "no-store", **self._headers}
        headers["x-content-type-options"] = "nosniff"
        if length is not None:
            headers["content-length"] = str(length)
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _end(self, data: bytes) -> None:
        self._ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


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


def read_details(trailers: Iterable[tuple[str, Any]]) -> tuple[str, str, float]:
    """Reason, the first field that is wrong ('' if none), and seconds until another try (0: not told)."""
    reason, field, seconds = "", "", 0.0
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad, retry = rpc.ErrorInfo(), rpc.BadRequest(), rpc.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, field, seconds


async def until_gone(work: Awaitable[None], exchange: Exchange) -> None:
    """Do the work; a client that leaves takes it along."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(exchange.left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait((working, leaving))
    if not working.cancelled():
        working.result()
