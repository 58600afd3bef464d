"""What is known of one call while it runs; log line and metrics are made from it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from router.access.answers import new_response_id
from router.access.clients import ANYONE, Client
from router.access.quotas import Meter
from router.ports import Exposed
from router.server.mixtures import header_of
from router.server.tracing import Phases, Trace
from router.types import Decision, Request, Usage, Vote

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
REQUEST_ID_KEY = "x-request-id"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
GENERATIONS = {
    "/router.v1.InferenceService/Generate",
    "/router.v1.InferenceService/StreamGenerate",
    MODEL_INFER,
}
T = TypeVar("T")
HEADERS_SECONDS = 1.0  # for headers to leave when their call has been cut off


@dataclass(slots=True)
class Call:
    """Filled in by the layers and the servicers. Times are `time.monotonic()` seconds.

    `request_id` is the caller's word for the call: echoed and logged, and a key of nothing, since callers may
    say the same one twice or each other's. What is kept of an answer is kept under `response_id`.
    """

    method: str  # /router.v1.InferenceService/Generate
    request_id: str
    client: Client = ANYONE
    response_id: str = ""  # once the client is known
    route: str = ""  # of a call that came over HTTP: POST /v1/chat/completions
    started: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    decision: Decision | None = None
    usage: Usage | None = None
    finish: str = ""
    resource: str = ""  # what an administrative call is about
    labels: Mapping[str, str] = field(default_factory=dict)
    meter: Meter | None = None  # of a client with quotas
    prompt: str = ""  # only where the operator asked for prompts in the log
    request: Request | None = None  # of an inference method, once it is known to be a good one
    trace: Trace | None = None  # where it is recorded
    phases: Phases = field(default_factory=Phases)
    votes: list[Vote] = field(default_factory=list)  # of the classifiers that were asked
    exposures: list[Exposed] = field(default_factory=list)
    on_request: Callable[[Call], None] = field(default=lambda _: None)  # called when `request` is known

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Initial metadata of the answer."""
        headers: tuple[tuple[str, str], ...] = ((REQUEST_ID_KEY, self.request_id),)
        if self.decision is not None:
            adapter, mixture = self.decision.adapter, self.decision.mixture
            headers += (("x-router-adapter", adapter.resource if adapter else header_of(mixture)),)
        return headers

    @property
    def ids(self) -> dict[str, str]:
        """Both ids, for a log line; of a call that was refused before anything could come of it, the one."""
        mine = {"response_id": self.response_id} if self.response_id else {}
        return {"request_id": self.request_id, **mine}

    def made_by(self, client: Client) -> None:
        """Now it is known who calls."""
        self.client, self.response_id = client, new_response_id(client.tenant)

    @property
    def seconds_left(self) -> float:
        """Until its deadline."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    @property
    def expired(self) -> bool:
        """Its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


CURRENT: ContextVar[Call] = ContextVar("lora_router_call")


def current_call() -> Call:
    """The call this task serves."""
    return CURRENT.get()


async def whole(operation: Awaitable[T]) -> T:
    """What an operation of gRPC gives. Whoever is cut off meanwhile leaves it to end by itself.

    grpcio frees what an operation holds when its coroutine goes on after it: one that is cancelled instead
    keeps some 400 bytes for ever.
    """
    running = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks
        raise


async def send_headers(context: Any) -> None:
    """Initial metadata of the present call. Who is cut off meanwhile waits until they are sent.

    gRPC takes no error status while they are on their way: the caller would wait for one until the deadline.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(current_call().headers))
    try:
        await whole(sending)
    except asyncio.CancelledError:
        await asyncio.wait((sending,), timeout=HEADERS_SECONDS)
        raise


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


def actor(peer: str) -> str:
    """Who makes the present call, for a record: the client, else where the call comes from."""
    return current_call().client.id or caller_of(peer)


def caller_of(peer: str) -> str:
    """Who calls, for a record: gRPC's name of the peer without its port, which says nothing later.

    >>> caller_of("ipv4:127.0.0.1:50123"), caller_of("ipv6:%5B::1%5D:50123")
    ('127.0.0.1', '::1')
    """
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
