"""The spans of one call: what it kept while it ran, then, in another thread, OpenTelemetry's objects.

A call is one span of the server, with children for route, lease, encode, queue, prefill and decode, as far
as it came. The times of the last three are those of the engine's own `Usage`; of an answer that broke off
there is none, and what is known then is when it was submitted and when its first token came.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from router.extensions.otel import attributes
from router.extensions.otel.attributes import Attributes
from router.server.call import ROUTE, Call, CallPhase

QUEUE, PREFILL, DECODE = "queue", "prefill", "decode"
WITH_QUEUE, WITH_PREFILL = "lora_router.includes_queue", "lora_router.includes_prefill"
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """The server's own span, and the one that it was called in; None where it began the trace."""

    context: SpanContext
    parent: SpanContext | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that has ended, in plain values: nothing of its prompt or answer is kept alive. Times are
    `time.monotonic()` seconds; `offset` makes unix nanoseconds of them."""

    origin: SpanOrigin
    name: str
    attributes: Attributes
    error: str  # the reason, where the server is to blame
    offset: int
    began: float
    ended: float
    phases: tuple[tuple[CallPhase, Attributes], ...]
    votes: tuple[Attributes, ...]
    exposures: tuple[tuple[float, Attributes], ...]  # unix seconds

    @property
    def size(self) -> int:
        """Spans that it makes."""
        return 1 + len(self.phases)


def ended(call: Call, origin: SpanOrigin, code: str, reason: str) -> Ended:
    """All that its spans will say, read off the call at once."""
    now = time.monotonic()
    return Ended(
        origin=origin,
        name=attributes.name_of(call),
        attributes=attributes.of_call(call, code, reason),
        error=(reason or code) if attributes.failed_by_server(code) else "",
        offset=time.time_ns() - int(now * NANOSECONDS),
        began=call.started,
        ended=now,
        phases=(*((phase, {}) for phase in call.phases.seen), *_in_engine(call, now, reason or code)),
        votes=tuple(map(attributes.of_vote, call.votes)),
        exposures=tuple((one.time, attributes.of_exposure(one)) for one in call.exposures),
    )


def _in_engine(call: Call, now: float, reason: str) -> Iterator[tuple[CallPhase, Attributes]]:
    """From its submission on."""
    at, usage, first = call.phases.submitted, call.usage, call.phases.first_token
    if not at:
        return
    if usage is not None:
        whole = usage.completion_tokens > 0
        started, end = at + usage.queue_time, at + usage.total_time
        token = at + usage.time_to_first_token if whole else end
        yield CallPhase(QUEUE, at, started), {}
        yield CallPhase(PREFILL, started, token), {}
        if whole:
            yield CallPhase(DECODE, token, end), {}
    elif first:
        yield CallPhase(PREFILL, at, first), {WITH_QUEUE: True}
        yield CallPhase(DECODE, first, now, reason), {}
    else:
        yield CallPhase(QUEUE, at, now, reason), {WITH_PREFILL: True}


class Maker:
    """Makes OpenTelemetry's spans. One for a process."""

    def __init__(self, resource: Resource, scope: InstrumentationScope, ids: IdGenerator) -> None:
        self._resource, self._scope, self._ids = resource, scope, ids

    def spans(self, calls: Sequence[Ended]) -> list[ReadableSpan]:
        """Of all of them."""
        return [span for one in calls for span in self._of(one)]

    def _of(self, one: Ended) -> Iterator[ReadableSpan]:
        own = one.origin.context

        def at(seconds: float) -> int:
            return int(seconds * NANOSECONDS) + one.offset

        events = [
            Event(attributes.EXPOSURE, said, timestamp=int(when * NANOSECONDS))
            for when, said in one.exposures
        ]
        yield ReadableSpan(
            one.name,
            own,
            one.origin.parent,
            self._resource,
            one.attributes,
            events,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, one.error) if one.error else Status(),
            start_time=at(one.began),
            end_time=at(one.ended),
            instrumentation_scope=self._scope,
        )
        for phase, said in one.phases:
            asked = one.votes if phase.name == ROUTE else ()
            end = at(phase.ended)
            yield ReadableSpan(
                phase.name,
                SpanContext(
                    own.trace_id, self._ids.generate_span_id(), False, own.trace_flags, own.trace_state
                ),
                own,
                self._resource,
                {**said, "error.type": phase.failed} if phase.failed else said,
                [Event("lora_router.classifier", vote, timestamp=end) for vote in asked],
                kind=SpanKind.INTERNAL,
                start_time=at(phase.began),
                end_time=end,
                instrumentation_scope=self._scope,
            )
