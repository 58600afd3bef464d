"""FeedbackService: feedback checked and recorded, listed by adapter, and deleted by unit or tenant."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from router.access.quotas import UsageMeter
from router.conversion import fill, route_of, unix_seconds
from router.errors import (
    AdapterNotFound,
    FieldViolation,
    Findings,
    InvalidRequest,
    NotFound,
    NotSaved,
    Overloaded,
    PermissionDenied,
)
from router.feedback.model import (
    MAX_ANSWER,
    MAX_COMMENT,
    MAX_CORRECTED,
    MAX_PROMPT,
    RAW,
    Feedback,
    Verdict,
)
from router.names import ADAPTER_FORM, BASE, split_adapter
from router.ports import AdapterRegistry
from router.server.call import Call
from router.server.policy import ADMIN, RECORD_TEXTS, Policy
from router.server.requests import MAX_UNIT_BYTES
from router.types import Visible
from router.units import is_missing, unit_hash
from router.v1 import feedback_pb2 as pb
from router.v1 import inference_pb2
from router.v1.feedback_pb2_grpc import FeedbackServiceServicer

if TYPE_CHECKING:
    from router.feedback.recorder import FeedbackRecorder, FeedbackRequest, Recorded
    from router.feedback.store import Place

MAX_ID_BYTES, MAX_TOKEN_BYTES = 64, 1024
DEFAULT_PAGE, MAX_PAGE, PAGE_BYTES = 100, 500, 1 << 20
LIMITS = {"corrected": MAX_CORRECTED, "comment": MAX_COMMENT, "prompt": MAX_PROMPT, "answer": MAX_ANSWER}
UNIT_HASH = re.compile(r"[0-9a-f]{32}")
NOT_YOURS = 'the feedback of other tenants is shown to, and deleted by, clients with adapters = ["*"] alone'
OFF = (
    "feedback is off, since the setting `feedback.keep` says so: set it to labels or texts, "
    "and start the server again"
)
ROWS: Mapping[str, Policy] = {
    "/router.v1.FeedbackService/RecordFeedback": RECORD_TEXTS,
    "/router.v1.FeedbackService/ListFeedback": ADMIN,
    "/router.v1.FeedbackService/DeleteFeedback": ADMIN,
}
VERDICTS: Mapping[int, Verdict] = {
    pb.FEEDBACK_VERDICT_GOOD: "good",
    pb.FEEDBACK_VERDICT_BAD: "bad",
    pb.FEEDBACK_VERDICT_CORRECTED: "corrected",
}
KEPT = {"labels": pb.FEEDBACK_KEPT_LABELS, "texts": pb.FEEDBACK_KEPT_TEXTS}
ROLES = {
    "system": inference_pb2.ROLE_SYSTEM,
    "user": inference_pb2.ROLE_USER,
    "assistant": inference_pb2.ROLE_ASSISTANT,
}


class FeedbackService(FeedbackServiceServicer):
    """Over the recorder of a server."""

    def __init__(self, recorder: FeedbackRecorder, registry: AdapterRegistry) -> None:
        self._recorder, self._registry = recorder, registry

    async def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, call: Call
    ) -> pb.RecordFeedbackResponse:
        """Durable when it answers. It counts as an outcome against the caller's quotas."""
        made = request_of(request, self._registry, call.client.adapters)
        if call.meter is not None:
            call.meter.take_outcomes(1)
        recorded = await _recorded(self._recorder, made, call, call.meter)
        return pb.RecordFeedbackResponse(kept=KEPT[recorded.kept], replaced=recorded.replaced)

    async def ListFeedback(self, request: pb.ListFeedbackRequest, call: Call) -> pb.ListFeedbackResponse:
        """A page; of the caller's own tenant, or of all for who may know of every adapter."""
        found = Findings()
        found.text("page_token", request.page_token, MAX_TOKEN_BYTES)
        parts = split_adapter(request.adapter)
        if request.adapter != BASE and (parts is None or parts[1]):
            found.add("adapter", "must be adapters/NAME, without a version, or base")
        if request.page_size < 0:
            found.add("page_size", "must be 0 or more")
        try:
            since = unix_seconds(request.since)
        except ValueError as error:
            since = 0.0
            found.add("since", str(error))
        found.check()
        call.resource, name = request.adapter, parts[0] if parts is not None else BASE
        _check_visible(name, call.client.adapters)
        client = call.client
        after = _place(request.page_token, name) if request.page_token else None
        most = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        tenant = None if client.adapters.everything else client.tenant
        rows = await self._recorder.read(lambda store: store.page(name, since, most + 1, after, tenant))
        shown = _fitting(rows[:most])
        return pb.ListFeedbackResponse(
            feedback=map(feedback_message, shown),
            next_page_token=_token(shown[-1], name) if len(shown) < len(rows) else "",
        )

    async def DeleteFeedback(
        self, request: pb.DeleteFeedbackRequest, call: Call
    ) -> pb.DeleteFeedbackResponse:
        """Deletes at once, on the disk and in the memory of this server."""
        found = Findings()
        found.text("unit", request.unit, MAX_UNIT_BYTES)
        if request.unit and request.unit_hash:
            found.add("unit_hash", "must be empty where unit is set: a unit is named once")
        elif request.unit_hash and UNIT_HASH.fullmatch(request.unit_hash) is None:
            found.add("unit_hash", "must be the hash of a unit, 32 of the characters 0-9 and a-f")
        if request.unit and is_missing(request.unit):
            found.add("unit", "must be a unit as in routing.unit, not a word for nobody")
        if not (request.unit or request.unit_hash or request.tenant):
            found.add("unit", "must be there, or unit_hash or tenant")
        found.check()
        client = call.client
        tenant: str | None = request.tenant or None
        if not client.adapters.everything:
            if request.tenant not in ("", client.tenant):
                raise PermissionDenied(NOT_YOURS)
            tenant = client.tenant
        unit = unit_hash(request.unit) if request.unit else request.unit_hash
        whose = (f"units/{unit}" if unit else "", f"tenants/{tenant}" if tenant else "")
        call.resource = " ".join(filter(None, whose))
        return pb.DeleteFeedbackResponse(deleted=await self._recorder.delete(unit, tenant))


async def _recorded(
    recorder: FeedbackRecorder, request: FeedbackRequest, call: Call, meter: UsageMeter | None
) -> Recorded:
    """What is not stored after all costs the caller's day nothing."""
    try:
        return await recorder.record(request, call.client)
    except (NotSaved, Overloaded, NotFound):
        if meter is not None:
            meter.not_stored(1)
        raise


def request_of(
    message: pb.RecordFeedbackRequest, registry: AdapterRegistry, visible: Visible
) -> FeedbackRequest:
    """Raises InvalidRequest naming every bad field, and AdapterNotFound where nobody could have answered."""
    from router.feedback.recorder import FeedbackRequest

    found = Findings()
    if not found.text("response_id", message.response_id, MAX_ID_BYTES):
        found.add("response_id", "must be the response_id of an answer")
    verdict = _verdict(message, found)
    for field, most in LIMITS.items():
        text = found.text(field, getattr(message, field), most)
        if text and not text.strip():
            found.add(field, "must not be blank; leave it out where there is none")
    found.text("unit", message.unit, MAX_UNIT_BYTES)
    name, version = _answered_by(message.answered_by, visible, found)
    try:
        better = route_of(message.should_have_been)
    except ValueError:
        better = ""
        found.add("should_have_been", "must be adapters/NAME, without a version, or base")
    found.check()
    if better not in ("", BASE):
        registry.get(better, "", visible)
    return FeedbackRequest(
        message.response_id,
        verdict,
        message.corrected,
        message.comment,
        name,
        version,
        message.prompt,
        message.answer,
        message.unit,
        better,
    )


def _verdict(message: pb.RecordFeedbackRequest, found: Findings) -> Verdict:
    verdict = VERDICTS.get(message.verdict)
    if message.corrected:
        if verdict == "good":
            found.add("verdict", "must not be GOOD where there is a corrected text")
        return "corrected"
    if message.should_have_been and verdict == "good":
        found.add("verdict", "must not be GOOD where another should have answered")
    elif message.should_have_been and verdict is None:
        verdict = "bad"
    if verdict is None:
        found.add("verdict", "must be GOOD or BAD, or there must be a corrected text or should_have_been")
    elif verdict == "corrected":
        found.add("corrected", "must be there: what the answer should have been")
    return verdict or "bad"


def _answered_by(resource: str, visible: Visible, found: Findings) -> tuple[str, str]:
    """Name and version, both empty where nothing is set."""
    if not resource:
        return "", ""
    parts = (BASE, "") if resource == BASE else split_adapter(resource)
    if parts is None:
        found.add("answered_by", f"must be {ADAPTER_FORM}, or base")
    elif parts[0] != BASE and parts[0] not in visible:
        found.add("answered_by", "is no adapter that this client may know of")
    return parts or ("", "")


def _check_visible(name: str, visible: Visible) -> None:
    if name != BASE and name not in visible:
        raise AdapterNotFound(name)


# -- Pages: a token is the place of the last entry that was shown, bound to the adapter.


def _fitting(rows: Sequence[Feedback]) -> Sequence[Feedback]:
    """As many as a message holds, one at least."""
    sizes = accumulate(sum(len(text) for text in _texts(one)) for one in rows)
    return rows[: max(1, sum(size <= PAGE_BYTES for size in sizes))]


def _texts(one: Feedback) -> Iterator[str]:
    yield from (text for _, text in one.messages)
    yield from (one.answer or "", one.corrected or "", one.comment)


def _token(one: Feedback, adapter: str) -> str:
    raw = json.dumps([adapter, one.time, one.tenant, one.response_id])
    return base64.urlsafe_b64encode(raw.encode()).decode()


def _place(token: str, adapter: str) -> Place:
    try:
        scope, time, tenant, response_id = json.loads(base64.b64decode(token.encode(), b"-_", validate=True))
        valid = scope == adapter and isinstance(time, float) and math.isfinite(time)
        valid = valid and isinstance(tenant, str) and isinstance(response_id, str)
        valid = valid and "\0" not in tenant + response_id
    except (ValueError, TypeError, binascii.Error, RecursionError):
        valid = False
    if not valid:
        text = "is not a token of this list; start again without one"
        raise InvalidRequest([FieldViolation("page_token", text)])
    return time, tenant, response_id


def feedback_message(one: Feedback) -> pb.Feedback:
    """As it is listed."""
    adapter = one.adapter
    if adapter not in (BASE, "mixture"):
        adapter = f"adapters/{adapter}/versions/{one.version}" if one.version else f"adapters/{adapter}"
    return fill(pb.Feedback(input=_input(one.messages)), replace(one, adapter=adapter))


def _input(messages: Sequence[tuple[str, str]]) -> inference_pb2.Input | None:
    if not messages:
        return None
    if messages[0][0] == RAW:
        return inference_pb2.Input(raw_prompt=messages[0][1])
    turns = [inference_pb2.ChatMessage(role=ROLES[role], text=text) for role, text in messages]
    return inference_pb2.Input(chat=inference_pb2.Chat(messages=turns))


class FeedbackCollector(Collector):
    """How much was kept, for a scraper."""

    def __init__(self, recorder: FeedbackRecorder) -> None:
        self._recorder = recorder

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        text = "Feedback: good, bad or corrected, by what was kept (labels, texts)."
        found = CounterMetricFamily("lora_router_feedback", text, labels=("verdict", "kept"))
        for labels, count in tuple(self._recorder.counts.items()):
            found.add_metric(labels, count)
        yield found
