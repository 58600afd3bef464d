"""What happens around every call: errors, log and metrics, who calls, whether they may and how
much, drain, deadline, admission, and only then its body.

Which of these layers a method gets says its `Policy`; every exception leaves as a status with details.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc

from router.access.access import Access, Credentials
from router.access.audit import Act, Acts
from router.access.clients import Client
from router.access.quotas import Quotas
from router.access.roles import LOOKS, Role, role_of
from router.access.xfcc import HEADER as XFCC
from router.config import Settings
from router.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RouterError,
    Unauthenticated,
    Unavailable,
)
from router.server.admission import Admission, ReadSlot
from router.server.bodies import MAX_PLAN_BYTES, SMALL, Bodies
from router.server.call import (
    CURRENT,
    MODEL_INFER,
    Call,
    caller_of,
    current_call,
    request_id_of,
    send_headers,
    whole,
)
from router.server.lifecycle import Lifecycle
from router.server.logs import Sparse
from router.server.metrics import Metrics
from router.server.observing import observed
from router.server.sending import Sending
from router.server.status import code_of, status_of, withheld
from router.server.tracing import NoTracing, Tracing
from router.v1.fleet_pb2 import ReplaceReplicasRequest, ResizeReplicasRequest

log = logging.getLogger(__name__)
REFUSALS = (Unauthenticated, PermissionDenied, QuotaExceeded)
Context = grpc.aio.ServicerContext[Any, Any]
LINES_PER_SECOND = 50  # about calls that met a bound; of more the next line has the number
CERTIFICATE = "x509_pem_cert"  # of the client, in the library's context
LOCAL_PEER = "unix:"  # only the admin listener is a socket of this machine
GONE_SECONDS = 0.1  # for gRPC to end a call whose deadline has passed
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Policy:
    """`gated`: refused while loading or draining; `admitted`: takes a place; `watch`: ended by a drain;
    `carries`: a watch each of whose messages is a call of its own, which quotas count instead, and which ends
    itself in a drain; `max_body`: bytes of one message, 0 for what the settings say."""

    gated: bool = False
    admitted: bool = False
    watch: bool = False
    carries: bool = False
    logged: bool = False
    max_body: int = SMALL


INFERENCE = Policy(gated=True, admitted=True, logged=True, max_body=0)
ADAPTERS = Policy(gated=True, logged=True)
EXPERIMENTS = Policy(gated=True, logged=True, max_body=MAX_PLAN_BYTES)
OTHER = Policy()
OTHER_WATCH = Policy(watch=True)

SERVICES = {
    "router.v1.InferenceService": INFERENCE,
    "router.v1.AdapterService": ADAPTERS,
    "router.v1.FleetService": ADAPTERS,
    "router.v1.ExperimentService": EXPERIMENTS,
}
METHODS = {
    "/router.v1.InferenceService/RecordCorrection": replace(INFERENCE, admitted=False, max_body=SMALL),
    "/router.v1.AdapterService/WatchAdapters": replace(ADAPTERS, watch=True),
    "/router.v1.FleetService/ReplaceReplicas": replace(ADAPTERS, watch=True),
    "/openai.v1/ListModels": ADAPTERS,
    "/ofrep.v1/EvaluateFlag": ADAPTERS,
    "/ofrep.v1/EvaluateFlags": ADAPTERS,
    "/router.v1.ExperimentService/RecordOutcome": replace(EXPERIMENTS, max_body=SMALL),
    "/router.v1.ExperimentService/RecordOutcomes": replace(EXPERIMENTS, watch=True),
    "/inference.GRPCInferenceService/ServerMetadata": ADAPTERS,
    "/inference.GRPCInferenceService/ModelMetadata": ADAPTERS,
    "/inference.GRPCInferenceService/ModelStreamInfer": replace(
        INFERENCE, admitted=False, watch=True, carries=True
    ),
    MODEL_INFER: INFERENCE,
    "/grpc.health.v1.Health/Watch": OTHER_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
}


def policy_of(method: str) -> Policy:
    """By method, else by service; health and reflection are open while loading and draining."""
    return METHODS.get(method) or SERVICES.get(method.rpartition("/")[0][1:], OTHER)


class Chain(grpc.aio.ServerInterceptor):
    """The way of every call through the layers, then to its handler.

    To the library every method is a stream of bytes, so that nothing of a body is read before the layers have
    let the call in; clients notice nothing of it.
    """

    def __init__(
        self,
        access: Access,
        audit: Acts | None,
        lifecycle: Lifecycle,
        metrics: Metrics,
        bodies: Bodies,
        sending: Sending,
        admission: Admission,
        settings: Settings,
        tracing: Tracing | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self._audit, self._quotas, self._sending = audit, quotas or Quotas(), sending
        self._admission = admission
        self._tracing = tracing or NoTracing()
        self._lines = Sparse(LINES_PER_SECOND)
        self._access, self._lifecycle, self._metrics, self._bodies = access, lifecycle, metrics, bodies
        self._max_deadline, self._max_body = settings.max_deadline_seconds, settings.max_body_bytes
        self._credentials = credentials_of

    def for_sidecar(self) -> Chain:
        """The same layers, which count together with these, where `x-forwarded-client-cert` is believed."""
        other = copy.copy(self)
        other._credentials = sidecar_credentials_of
        return other

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

        async def run(_: Any, context: Context) -> None:
            await self.serve(handler, call, context)

        # Messages are encoded by the library where a servicer writes them one by one.
        encode = handler.response_serializer if handler.response_streaming else None
        return grpc.stream_stream_rpc_method_handler(run, None, encode)

    async def serve(self, handler: Any, call: Call, context: Any) -> None:
        """One call, by gRPC or in its form: `context` reads and writes messages as bytes."""
        CHAIN.set(self)
        async with AsyncExitStack() as layers:
            slot = await self._enter(layers, call, context, one_message=not handler.request_streaming)
            await self._answer(layers, call, slot, context, handler)

    async def _enter(
        self, layers: AsyncExitStack, call: Call, context: Context, one_message: bool
    ) -> ReadSlot | None:
        """All that comes before the body; returns the slot to read it where it is one message."""
        policy = policy_of(call.method)
        CURRENT.set(call)
        if policy.logged and not policy.watch:
            call.trace = self._tracing.begin(context.invocation_metadata() or ())
        await layers.enter_async_context(mapped_errors(call, context))
        layers.enter_context(observed(call, self._metrics, policy.logged, self._lines, self._tracing))
        if self._audit is not None:
            await layers.enter_async_context(audited(call, self._audit, context.peer()))
        credentials = await self._access.verified(self._credentials(context), call.method)
        call.made_by(self._access.client(credentials, call.method))
        self._access.check(call.client, credentials, call.method)
        await layers.enter_async_context(self._access.holding(credentials, call.method, call.client))
        if not policy.carries:
            call.meter = layers.enter_context(self._quotas.call(call.client))
        if policy.gated:
            self._lifecycle.gate()
        if policy.watch:
            watching = self._lifecycle.watching(context.peer(), cut=not policy.carries)
            await layers.enter_async_context(watching)
        else:
            remaining = context.time_remaining()
            await layers.enter_async_context(deadline(call, remaining, self._max_deadline))
        if policy.admitted:
            self._admission.check(call)  # again below, where the call has had to wait for its slot
        slot = None
        if one_message:  # without a slot it holds no place
            large = self._most(policy) > SMALL
            slot = await layers.enter_async_context(self._admission.read_slot(context.peer(), large))
        if policy.admitted:
            layers.enter_context(self._admission.admitted(call))
            call.on_request = self._admission.request_known
        return slot

    async def known(self, token: str, method: str) -> Client:
        """The client that calls `method` with that token. Raises Unauthenticated."""
        credentials = await self._access.verified(Credentials((f"Bearer {token}",)), method)
        return self._access.client(credentials, method)

    def permit(self, method: str) -> None:
        """Raises PermissionDenied, AdminElsewhere where the client of the present call may not call that
        method in the way that it came: for a call that asks other services while it runs."""
        self._access.check(current_call().client, Credentials(), method)

    def why_not(self, method: str) -> str:
        """Why it may not, in words; empty if it may."""
        try:
            self.permit(method)
        except PermissionDenied as error:
            return error.message
        return ""

    def most(self, method: str) -> int:
        """Bytes of a message of that method."""
        return self._most(policy_of(method))

    def _most(self, policy: Policy) -> int:
        return policy.max_body or self._max_body

    async def _answer(
        self, layers: AsyncExitStack, call: Call, slot: ReadSlot | None, context: Context, handler: Any
    ) -> None:
        """Read, and answer."""
        most, decode = self._most(policy_of(call.method)), handler.request_deserializer
        if slot is None:
            request = await layers.enter_async_context(aclosing(self._bodies.each(context, most, decode)))
        else:
            request = await layers.enter_async_context(self._bodies.one(context, slot, most, decode))
            call.resource = resource_of(request)
        context = await layers.enter_async_context(self._sending.watched(context))
        answer = handler_of(handler)(request, context)
        if not handler.response_streaming:
            response = handler.response_serializer(await answer)  # here, so that what it raises is mapped
            await self._done(call, context)
            await send_headers(context)
            await whole(context.write(response))
            return
        if hasattr(answer, "__aiter__"):
            async for message in answer:
                await context.write(message)
        else:
            await answer
        await self._done(call, context)

    async def _done(self, call: Call, context: Context) -> None:
        """What an administrative call was to do is done: a line of it is kept."""
        if self._audit is not None and is_admin(call):
            await asyncio.wrap_future(self._audit.acted(act_of(call, context.peer(), "OK")))


CHAIN: ContextVar[Chain] = ContextVar("lora_router_chain")


def present_chain() -> Chain:
    """The layers by which the present call came, for calls that come inside it."""
    return CHAIN.get()


def handler_of(handler: Any) -> Callable[..., Any]:
    """The servicer's method."""
    return (  # type: ignore[no-any-return]
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def credentials_of(context: Context) -> Credentials:
    """What the call brings to say who calls."""
    certificate = next(iter(context.auth_context().get(CERTIFICATE, ())), b"")
    local = context.peer().startswith(LOCAL_PEER)
    return Credentials(sent_as("authorization", context), certificate, local)


def sidecar_credentials_of(context: Context) -> Credentials:
    """What a call brings that came by the sidecar's listener."""
    return Credentials(sent_as("authorization", context), forwarded=sent_as(XFCC, context))


def sent_as(name: str, context: Context) -> tuple[str, ...]:
    """The texts that the call sends as that header."""
    metadata = context.invocation_metadata() or ()
    return tuple(value for key, value in metadata if key == name and isinstance(value, str))


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
        left = context.time_remaining()
        if isinstance(error, DeadlineExceeded) and left is not None and left < GONE_SECONDS:
            # The caller's own deadline: gRPC ends the call itself, and a status that comes too late for it
            # is never freed. So it gets a moment, in which this is cancelled.
            await asyncio.sleep(GONE_SECONDS)
        with suppress(grpc.aio.InternalError):  # the caller has left
            await whole(context.abort(status.code, status.message, trailing_metadata=status.trailers))


def _log_withheld(error: Exception, call: Call) -> None:
    """Log what the caller is not told. What every call of an hour may end with gets no traceback."""
    if not isinstance(error, RouterError) or code_of(error) is grpc.StatusCode.INTERNAL:
        log.error("internal error", exc_info=error, extra={"fields": call.ids})
    elif withheld(error):
        often = isinstance(
            error,
            InvalidRequest | NotFound | QuotaExceeded | Unavailable | Unauthenticated | PermissionDenied,
        )
        fields = {**call.ids, "reason": error.reason, "text": error.message, "of": dict(error.metadata)}
        log.warning("not told in full", exc_info=None if often else error, extra={"fields": fields})


@asynccontextmanager
async def audited(call: Call, audit: Acts, peer: str) -> AsyncIterator[None]:
    """A line for every refusal, and for an administrative call that fails; `_answer` notes the others."""
    try:
        yield
    except asyncio.CancelledError:
        if is_admin(call):
            audit.acted(act_of(call, peer, "CANCELLED"))
        raise
    except Exception as error:
        reason = error.reason if isinstance(error, RouterError) else ""
        act = act_of(call, peer, code_of(error).name, reason)
        if isinstance(error, REFUSALS):
            audit.refused(act)
        elif is_admin(call):
            await asyncio.wrap_future(audit.acted(act))
        raise


def is_admin(call: Call) -> bool:
    """Whether it administers something."""
    return role_of(call.method) is Role.ADMIN and call.method not in LOOKS


def act_of(call: Call, peer: str, code: str, reason: str = "") -> Act:
    """What the audit keeps of it."""
    method = call.method.removeprefix("/")
    return Act(call.request_id, call.client.id, caller_of(peer), method, call.resource, code, reason)


def resource_of(message: Any) -> str:
    """What a request names: an adapter, an experiment, replicas, or how many of them."""
    for name in ("name", "experiment_id"):
        if isinstance(said := getattr(message, name, ""), str) and said:
            return said
    if isinstance(message, ReplaceReplicasRequest):
        return "all" if message.all else ", ".join(message.names)
    if isinstance(message, ResizeReplicasRequest):
        return f"{message.least}..{message.most}"
    return str(getattr(getattr(message, "experiment", None), "name", ""))


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
