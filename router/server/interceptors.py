"""What happens around every call, whatever its transport: errors, log and metrics, who calls, whether they
may and how much, drain, deadline, admission, and only then its body.

Which of these a method gets says its `Policy`; every exception leaves as a status with details.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from router.access.access import Access, Credentials
from router.access.audit import Audit, AuditedCall, Sparse
from router.access.clients import Client, Role
from router.config import Settings
from router.errors import (
    BodyIncomplete,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RouterError,
    Unauthenticated,
    Unavailable,
)
from router.names import MOST_MODEL
from router.server.admission import Admission, PhaseGate, ReadSlot, Sending
from router.server.bodies import Bodies
from router.server.call import (
    CURRENT,
    Call,
    Endpoint,
    Tracing,
    caller_of,
    current_call,
)
from router.server.logs import ACCESS_LOG
from router.server.metrics import ServerMetrics
from router.server.policy import SMALL, Policy
from router.server.status import INTERNAL, code_of, first_field, grpc_status, http_status, withheld

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS_LOG)
LEVELS = {"INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR, "UNAVAILABLE": logging.WARNING}
HTTP = "http"
REFUSALS = (Unauthenticated, PermissionDenied, QuotaExceeded)
CALLER_AHEAD = 0.1  # a call that its caller ends so shortly before its deadline has met it
LINES_PER_SECOND = 50  # about calls that met a bound; of more the next line has the number


class Interceptors:
    """All of them, in their order; one object serves the calls of every transport and address."""

    def __init__(
        self,
        access: Access,
        admission: Admission,
        lifecycle: PhaseGate,
        metrics: ServerMetrics,
        settings: Settings,
        audit: Audit | None = None,
    ) -> None:
        self._access, self._admission, self._lifecycle = access, admission, lifecycle
        self._metrics, self._audit = metrics, audit
        self.tracing: Tracing | None = None
        self.bodies = Bodies(admission.memory, admission.body_seconds)
        self.sending = Sending(lambda: admission.pressed)
        self._lines = Sparse(LINES_PER_SECOND)
        self._max_deadline, self._max_body = settings.max_deadline_seconds, settings.max_body_bytes

    async def serve(self, endpoint: Endpoint, call: Call) -> None:
        """Answer one call. Whatever is raised inside ends it with its status."""
        try:
            async with AsyncExitStack() as stack:
                slot = await self._enter(stack, endpoint, call)
                await self._answer(stack, endpoint, call, slot)
        except Exception as error:
            _log_withheld(error, call)
            await call.refuse(error)

    async def _enter(self, stack: AsyncExitStack, endpoint: Endpoint, call: Call) -> ReadSlot | None:
        """All that comes before the body; returns the slot to read it where it is one message."""
        policy = call.policy
        call.most = policy.max_body or self._max_body
        CURRENT.set(call)
        if self.tracing is not None and policy.logged and not policy.watch:
            call.trace = self.tracing.begin(call.metadata)
        stack.enter_context(observed(call, self._metrics, self._lines, self.tracing))
        if self._audit is not None:
            await stack.enter_async_context(audited(call, self._audit))
        role, name = policy.role, endpoint.operation or endpoint.method
        credentials = await self._access.verified(call.credentials(), role)
        call.made_by(self._access.client(credentials, role))
        self._access.check(call.client, role, name)
        held = self._access.holding(credentials, role, name, call.client, call.end, policy.watch)
        stack.enter_context(held)
        if call.client.metered and not policy.carries:
            call.meter = stack.enter_context(self._admission.quotas.call(call.client))
        if policy.gated:
            self._lifecycle.gate()
        if policy.watch:
            stack.enter_context(self._lifecycle.watching(call))
            await stack.enter_async_context(bounded(call, None))
        else:
            left = call.time_remaining()
            most = self._max_deadline if left is None else min(left, self._max_deadline)
            if left is not None:
                call.caller_ahead = min(CALLER_AHEAD, left / 10)
            await stack.enter_async_context(bounded(call, most))
        if policy.admitted:
            self._admission.check(call)  # again below, where the call has had to wait for its slot
        slot = None
        if endpoint.decode is not None and not endpoint.requests:  # without a slot it holds no place
            large = call.most > SMALL
            slot = await stack.enter_async_context(self._admission.read_slot(call.peer, large))
        if policy.admitted:
            stack.enter_context(self._admission.admitted(call))
        return slot

    async def known(self, token: str) -> Client:
        """The client with that token. Raises Unauthenticated."""
        credentials = await self._access.verified(Credentials((f"Bearer {token}",)), Role.OBSERVE)
        return self._access.client(credentials, Role.OBSERVE)

    def permit(self, policy: Policy, method: str) -> None:
        """Raises PermissionDenied where the client of the present call may not call `method`: for a call that
        asks other services while it runs."""
        self._access.check(current_call().client, policy.role, method)

    def why_not(self, policy: Policy, method: str) -> str:
        """Why it may not, in words; empty if it may."""
        try:
            self.permit(policy, method)
        except PermissionDenied as error:
            return error.message
        return ""

    async def _answer(
        self, stack: AsyncExitStack, endpoint: Endpoint, call: Call, slot: ReadSlot | None
    ) -> None:
        """Read, and answer."""
        request: Any = None
        if slot is not None and endpoint.decode is not None:
            request = await stack.enter_async_context(self.bodies.one(call, slot, endpoint.decode))
            call.resource, call.answer.model = resource_of(request), named_model(request)
        elif endpoint.decode is not None:
            request = await stack.enter_async_context(aclosing(self.bodies.each(call, endpoint.decode)))
        stack.enter_context(self.sending.watched(call))
        answer = endpoint.answer(request, call)
        if hasattr(answer, "__aiter__"):
            async for message in answer:
                await call.write(message)
            await self._done(call)
            return
        found = await answer
        if found is None and endpoint.streams:
            await self._done(call)
            return
        encoded = call.encode(found)  # here, so that what it raises is mapped
        await self._done(call)
        await call.reply(encoded)

    async def _done(self, call: Call) -> None:
        """What an administrative call was to do is done: keep a line of it."""
        if self._audit is not None and is_admin(call):
            await asyncio.wrap_future(self._audit.acted(act_of(call, "OK")))


# -- The interceptors, the outermost first.


def _log_withheld(error: Exception, call: Call) -> None:
    """Log what is withheld from the caller. What every call of an hour may end with gets no traceback."""
    if not isinstance(error, RouterError) or code_of(error) == INTERNAL:
        log.error("internal error", exc_info=error, extra={"fields": call.ids})
    elif withheld(error):
        often = isinstance(
            error,
            InvalidRequest | NotFound | QuotaExceeded | Unavailable | Unauthenticated | PermissionDenied,
        )
        fields = {**call.ids, "reason": error.reason, "text": error.message, "of": dict(error.metadata)}
        log.warning(
            "details withheld from the caller", exc_info=None if often else error, extra={"fields": fields}
        )


@asynccontextmanager
async def audited(call: Call, audit: Audit) -> AsyncIterator[None]:
    """A line for every refusal, and for an administrative call that fails; `_answer` notes the others."""
    try:
        yield
    except asyncio.CancelledError:
        if is_admin(call):
            audit.acted(act_of(call, "CANCELLED"))
        raise
    except Exception as error:
        reason = error.reason if isinstance(error, RouterError) else ""
        act = act_of(call, code_of(error), reason)
        if isinstance(error, REFUSALS):
            audit.refused(act)
        elif is_admin(call):
            await asyncio.wrap_future(audit.acted(act))
        raise


def is_admin(call: Call) -> bool:
    """Whether it administers something."""
    return call.policy.role is Role.ADMIN and not call.policy.views


def act_of(call: Call, code: str, reason: str = "") -> AuditedCall:
    """What the audit keeps of it."""
    method = (call.endpoint.operation or call.method).removeprefix("/")
    return AuditedCall(
        call.request_id, call.client.id, caller_of(call.peer), method, call.resource, code, reason
    )


def resource_of(message: Any) -> str:
    """What a request names: an adapter, an experiment or a replica."""
    for name in ("name", "experiment_id"):
        if isinstance(resource := getattr(message, name, ""), str) and resource:
            return resource
    return str(getattr(getattr(message, "experiment", None), "name", ""))


def named_model(message: Any) -> str:
    """The model that a request of another API than ours names; of ours the service reads it."""
    for name in ("model", "model_name"):
        if isinstance(model := getattr(message, name, None), str):
            return model[:MOST_MODEL]
    return ""


@asynccontextmanager
async def bounded(call: Call, seconds: float | None) -> AsyncIterator[None]:
    """Stop what runs inside after so many seconds, and raise DeadlineExceeded; or earlier, by `call.end`, and
    raise what ended it. None: the call has no deadline."""
    if seconds is not None:
        call.deadline = time.monotonic() + seconds
        if seconds <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
    call.timeout = timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise call.ended_by or call.late() from None
    finally:
        call.timeout = None


# -- What is recorded of a call when it has ended: one log line, metrics, and its trace where there is one.


@contextmanager
def observed(call: Call, metrics: ServerMetrics, lines: Sparse, tracing: Tracing | None) -> Iterator[None]:
    """One log line, the metrics and the trace of the call, however it ends; before its status leaves the
    server."""
    end = CallEnd()
    try:
        yield
    except asyncio.CancelledError:
        end.code = "DEADLINE_EXCEEDED" if call.expired else "CANCELLED"
        raise
    except Exception as error:
        end.failed(error)
        if isinstance(error, InvalidRequest):
            call.answer.model, call.refused_field = call.answer.model or error.model, first_field(error)
        raise
    finally:
        if end.bound:
            metrics.refused(end.bound)
        if end.code != "OK" and not call.status:  # of a stream by HTTP it has left already
            http = call.transport == HTTP
            call.status = http_status(end.code, end.reason) if http else grpc_status(end.code)
        metrics.record(call, end.code, end.outcome, end.reason)
        if tracing is not None and call.trace is not None:
            tracing.ended(call, end.outcome, end.reason)
        _log_end(call, end, lines)


@dataclass(slots=True)
class CallEnd:
    """How a call ended: its code; for an error the reason, and the limit that it met."""

    code: str = "OK"
    reason: str = ""
    bound: str = ""
    cancelled: bool = False  # by its caller, whatever the code

    @property
    def outcome(self) -> str:
        """The code of the request that the call was."""
        return "CANCELLED" if self.cancelled else self.code

    def failed(self, error: Exception) -> None:
        """By that error."""
        self.code, self.reason = code_of(error), type(error).__name__
        if isinstance(error, RouterError):
            self.reason, self.bound = error.reason, error.metadata.get("bound", "")
        # No request came, and the server did not fail one.
        self.cancelled = isinstance(error, BodyIncomplete)


def _log_end(call: Call, end: CallEnd, lines: Sparse) -> None:
    level = LEVELS.get(end.code, logging.INFO)
    flood = end.bound or call.unserved
    if call.policy.logged and (not flood or lines.next()) and access_log.isEnabledFor(level):
        fields = log_fields(call, end.code, end.reason, end.bound)
        if lines.left:
            fields["left_out"] = lines.left_out()
        access_log.log(level, "request", extra={"fields": fields})


def log_fields(call: Call, code: str, error: str, bound: str = "") -> dict[str, Any]:
    """What the log line of a call says. `error` is the reason of its error, `bound` the limit that it met. No
    text of prompt or answer unless the operator asked for it."""
    answer = call.answer
    line: dict[str, Any] = {
        **call.ids,
        "transport": call.transport,
        "method": call.verb,
        "route": call.route,
        "status": call.status,
        "code": code,
        "seconds": round(time.monotonic() - call.started, 6),
    }
    optional = {
        "trace_id": call.trace.trace_id if call.trace is not None else "",
        "path": call.unserved,
        "model": answer.model,
        "client": call.client.id,
        "tenant": call.client.tenant,
        "error": error,
        "field": call.refused_field,
        "bound": bound,
        "finish": answer.finish,
        "labels": answer.request.labels if answer.request is not None else {},
    }
    line.update({key: value for key, value in optional.items() if value})
    if (decision := answer.decision) is not None:
        line["adapter"], line["version"] = decision.answered_by
        if decision.mixture:
            line["mixture"] = list(map(str, decision.mixture))
        line["reason"] = decision.reason.value
        line["confidence"] = round(decision.confidence, 4)
        line["classifier"] = decision.classifier
        line["route_seconds"] = round(decision.latency, 6)
        if decision.experiment:
            line["experiment"], line["arm"] = decision.experiment, decision.arm
    if (usage := answer.usage) is not None:
        line["prompt_tokens"] = usage.prompt_tokens
        line["cached_tokens"] = usage.cached_tokens
        line["completion_tokens"] = usage.completion_tokens
        line["queue_seconds"] = round(usage.queue_time, 6)
        line["first_token_seconds"] = round(usage.time_to_first_token, 6)
    return line
