"""A call, whatever its transport: who makes it, its bounds, its body, and how it is answered.

The interceptors (`interceptors.py`) and the services know `Call` alone. A transport is a subclass that says
how a body is read and an answer is written: `GrpcCall` (`grpc_adapter.py`) and `HttpCall` (`http.py`).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote

from router.access.access import Credentials, new_response_id
from router.access.clients import ANYONE, Client
from router.access.quotas import UsageMeter
from router.errors import DeadlineExceeded, RouterError
from router.ports import Exposed, Stage
from router.server.policy import Policy
from router.types import Decision, MixturePart, Request, Usage, Vote

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
REQUEST_ID_KEY = "x-request-id"
OTHER_METHOD = "_OTHER"  # of what no method serves, by OpenTelemetry's conventions
ROUTE, LEASE, ENCODE = "route", "lease", "encode"  # names of phases
CUT_OFF = {  # what the deadline interrupted, by phase
    ROUTE: "while the request was routed",
    LEASE: "while the adapter was loaded",
    ENCODE: "while the prompt was encoded",
}
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class CallPhase:
    """A part of a call, in `time.monotonic()` seconds; `failed` is the reason for which it was its last."""

    name: str
    began: float
    ended: float
    failed: str = ""


@dataclass(slots=True, eq=False)
class Answer:
    """What is known of the answer to a request, as far as it came. Times are `time.monotonic()` seconds."""

    model: str = ""  # that the request asks for: auto, base, NAME, NAME@VERSION, mixture
    request: Request | None = None  # once it is valid
    decision: Decision | None = None
    votes: list[Vote] = field(default_factory=list)  # of the classifiers that were asked
    exposures: list[Exposed] = field(default_factory=list)
    phases: list[CallPhase] = field(default_factory=list)  # until the engine has it; then `usage` tells
    submitted: float = 0.0  # to the engine; 0 before that
    first_token: float = 0.0  # when it came; 0 before that
    tokens: int = 0  # that came so far
    usage: Usage | None = None
    finish: str = ""

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """The block is that phase."""
        began, failed = time.monotonic(), ""
        try:
            yield
        except BaseException as error:
            failed = reason_of(error)
            raise
        finally:
            self.phases.append(CallPhase(name, began, time.monotonic(), failed))

    @property
    def untaken(self) -> Stage:
        """Where a request was that the engine has not taken."""
        last = self.phases[-1] if self.phases else None
        leasing = last is None or last.name == ROUTE or (last.name == LEASE and bool(last.failed))
        return Stage.LEASE if leasing else Stage.ADMISSION

    def came(self, tokens: int) -> None:
        """So many tokens of the answer."""
        self.first_token = self.first_token or time.monotonic()
        self.tokens += tokens


def reason_of(error: BaseException) -> str:
    """What an error is called in a trace."""
    if isinstance(error, RouterError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else type(error).__name__


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of a call that is recorded. Ids are as in `traceparent`; `origin` is the tracer's own."""

    trace_id: str
    span_id: str
    origin: Any = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Answers the calls of one method or route.

    `answer(request, call)` is a coroutine that returns the answer, or an asynchronous iterator of its parts.
    With `streams` it may instead send the parts itself, after `await call.begin()`, and return None.
    `request` is what `decode` makes of the body, None without `decode`; with `requests` it is an iterator of
    messages, which has `done(message)` for a message that is no longer needed. `operation` is the method of
    a service that an HTTP route carries out.
    """

    method: str  # a row of the policy table: /router.v1.InferenceService/Generate, POST /v1/completions
    policy: Policy
    answer: Callable[[Any, Any], Any]
    decode: Callable[[bytes], Any] | None = None
    requests: bool = False
    streams: bool = False
    operation: str = ""


@dataclass(slots=True, eq=False)
class Call:
    """Who calls what, and until when; `answer` is how. Times are `time.monotonic()` seconds.

    `request_id` is the caller's own name for the call: it is echoed and logged, and is a key of nothing,
    since callers may send the same one twice or each other's. What is kept of an answer is kept under
    `response_id`.
    """

    transport: ClassVar[str] = ""  # "grpc" or "http"

    endpoint: Endpoint
    request_id: str
    peer: str = ""  # the connection: ipv4:HOST:PORT or ipv6:[HOST]:PORT
    metadata: Metadata = ()  # headers, their names in lower case
    client: Client = ANYONE
    response_id: str = ""  # once the client is known
    meter: UsageMeter | None = None  # of a client with quotas
    answer: Answer = field(default_factory=Answer)
    trace: Trace | None = None  # where it is recorded
    resource: str = ""  # what an administrative call is about
    unserved: str = ""  # what was asked for, where no route and no method serves it
    refused_field: str = ""  # the first one
    most: int = 0  # bytes that a message of this call may have
    status: int = 0  # of HTTP once the answer has begun; of gRPC, its number, once the call has ended
    writing_since: float = 0.0  # when the present write began; 0: there is none
    started: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    caller_ahead: float = 0.0  # seconds by which the caller may see its own deadline earlier
    timeout: asyncio.Timeout | None = None  # ends the call, at its deadline or earlier
    ended_by: RouterError | None = None  # why earlier

    # -- What a transport provides

    def credentials(self) -> Credentials:
        """What the call brings to say who calls."""
        raise NotImplementedError

    def time_remaining(self) -> float | None:
        """Seconds until the caller's own deadline; None without one."""
        return None

    async def read(self) -> bytes | bytearray | None:
        """The next message of the body; None after the last. A body that is larger than `most` may come cut
        off, but still larger than `most`."""
        raise NotImplementedError

    def encode(self, answer: Any) -> Any:
        """What `reply` sends of an answer. Raises for what cannot be one."""
        raise NotImplementedError

    async def begin(self) -> None:
        """Send the headers of an answer that comes in parts."""
        raise NotImplementedError

    async def write(self, message: Any) -> None:
        """Send a part of the answer; returns when the transport has taken it."""
        raise NotImplementedError

    async def reply(self, encoded: Any) -> None:
        """Send headers and the whole answer."""
        raise NotImplementedError

    async def refuse(self, error: Exception) -> None:
        """End the call with an error."""
        raise NotImplementedError

    # -- What follows from it

    @property
    def method(self) -> str:
        """Its row of the policy table."""
        return self.endpoint.method

    @property
    def policy(self) -> Policy:
        """What that row says."""
        return self.endpoint.policy

    @property
    def scheme(self) -> str:
        """Of the URL: http or https; empty where there is none."""
        return ""

    @property
    def verb(self) -> str:
        """The method of HTTP: POST; of gRPC the method without its service: Generate."""
        if self.transport == "http":
            return self.method.partition(" ")[0]
        return self.method.rpartition("/")[2]

    @property
    def route(self) -> str:
        """The template of the path, or SERVICE/METHOD; empty where neither serves the call."""
        if self.unserved:
            return ""
        return self.method.partition(" ")[2] if self.transport == "http" else self.method.removeprefix("/")

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Initial metadata of the answer."""
        headers: tuple[tuple[str, str], ...] = ((REQUEST_ID_KEY, self.request_id),)
        if (decision := self.answer.decision) is not None:
            adapter, mixture = decision.adapter, decision.mixture
            headers += (("x-router-adapter", adapter.resource if adapter else mixture_header(mixture)),)
        return headers

    @property
    def ids(self) -> dict[str, str]:
        """For a log line: both ids, or the request id alone before the client is known."""
        mine = {"response_id": self.response_id} if self.response_id else {}
        return {"request_id": self.request_id, **mine}

    @property
    def answer_id(self) -> str:
        """What outcomes are recorded under where the call was to have an answer, also one that failed; else
        empty. Before its request was read, nothing is kept of it."""
        return self.response_id if self.policy.generates and self.answer.request is not None else ""

    @property
    def actor(self) -> str:
        """Who makes the call, for a record: the client, else the address that the call comes from."""
        return self.client.id or caller_of(self.peer)

    def end(self, error: RouterError) -> None:
        """End the call early, with that error; on its event loop. A call that has ended is left alone."""
        if self.timeout is not None and not self.timeout.expired():
            self.ended_by = error
            self.timeout.reschedule(0)

    def made_by(self, client: Client) -> None:
        """Note who calls."""
        self.client, self.response_id = client, new_response_id(client.tenant)

    def branch(self) -> Call:
        """A call for another answer to the same message, with an id of its own."""
        made = Call(self.endpoint, self.request_id, self.peer, self.metadata)
        made.made_by(self.client)
        made.started, made.deadline = self.started, self.deadline
        return made

    def sent_as(self, name: str) -> tuple[str, ...]:
        """The texts that the call sends as that header."""
        return tuple(value for key, value in self.metadata if key == name and isinstance(value, str))

    @property
    def seconds_left(self) -> float:
        """Until its deadline."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def late(self) -> DeadlineExceeded:
        """The error of a call whose deadline has passed; it says where the time went, if that is known."""
        text = "the deadline passed before the answer was complete"
        where = self._interrupted()
        return DeadlineExceeded(f"{text}: {where}" if where else text)

    def _interrupted(self) -> str:
        answer = self.answer
        if answer.phases and answer.phases[-1].failed:
            return CUT_OFF.get(answer.phases[-1].name, "")
        if answer.tokens:
            return f"after {answer.tokens} tokens"
        if answer.submitted:
            return "the request waited for its first token"
        return "its body was not read" if self.policy.admitted and answer.request is None else ""

    @property
    def expired(self) -> bool:
        """Its deadline has passed for its caller, whose clock started before the call arrived."""
        return self.seconds_left <= self.caller_ahead


class NotServed(RouterError):
    """No method and no route serves what was asked for."""

    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"


CURRENT: ContextVar[Call] = ContextVar("lora_router_call")


def current_call() -> Call:
    """The call this task serves."""
    return CURRENT.get()


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's x-request-id if it is 1 to 128 printable characters, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return new_response_id()


def present_client() -> Client:
    """Who makes the present call; anybody where there is none."""
    call = CURRENT.get(None)
    return call.client if call is not None else ANYONE


def check_time(deadline: float | None) -> None:
    """Raise DeadlineExceeded where it has passed: for a prompt that is being read."""
    if deadline is not None and deadline <= time.monotonic():
        raise DeadlineExceeded("the prompt was not read in time")


def caller_of(peer: str) -> str:
    """The address of a peer without its port, which says nothing later.

    >>> caller_of("ipv4:127.0.0.1:50123"), caller_of("ipv6:%5B::1%5D:50123")
    ('127.0.0.1', '::1')
    """
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def mixture_header(parts: Sequence[MixturePart]) -> str:
    """For `x-router-adapter`: the parts' resource names, each with its weight."""
    return ", ".join(f"{part.ref.resource};weight={part.weight:g}" for part in parts)


# -- Tracing: spans are made of a call when it has ended, so that nothing of tracing stands in its way.


class Tracing(Protocol):
    """Makes traces. Both are called on the event loop, must return at once and not raise."""

    endpoint: str  # where they go, for operators

    def begin(self, metadata: Metadata) -> Trace | None:
        """The trace of a call that came with these headers; None for one that is not recorded."""
        ...

    def ended(self, call: Call, code: str, reason: str) -> None:
        """A call that has a trace has ended, with that status and, after an error, for that reason."""
        ...
