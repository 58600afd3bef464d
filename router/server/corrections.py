"""Corrections as callers send them: checked, about adapters that the caller may know of, and counted."""

from __future__ import annotations

from router.access.quotas import UsageMeter
from router.corrections.recorder import CorrectionRequest, Corrections
from router.corrections.store import MAX_TEXT
from router.errors import FailedPrecondition, Findings, NotSaved, Overloaded
from router.names import BASE, split_adapter
from router.ports import AdapterRegistry
from router.server.call import Call
from router.types import Keeping, Visible
from router.v1 import inference_pb2 as pb

MAX_ID_BYTES = 64
ADAPTER_FORM = "must be adapters/NAME, without a version, or base"
OFF = (
    "corrections are off, since the setting `corrections.keep` says so: set it to labels or texts, "
    "and start the server again"
)
KEPT: dict[Keeping, pb.CorrectionKept] = {
    "labels": pb.CORRECTION_KEPT_LABELS,
    "texts": pb.CORRECTION_KEPT_TEXT,
}


async def record_correction(
    message: pb.RecordCorrectionRequest,
    call: Call,
    corrections: Corrections | None,
    registry: AdapterRegistry,
) -> pb.RecordCorrectionResponse:
    """What was kept. A correction counts as an outcome against the caller's quotas.

    Raises FailedPrecondition where nothing is kept, InvalidRequest, AdapterNotFound, QuotaExceeded, and what
    `Corrections.record` raises.
    """
    request = correction_of(message, registry, call.client.adapters)
    if corrections is None:
        raise FailedPrecondition(OFF)
    if call.meter is not None:
        call.meter.take_outcomes(1)
    kept = await _kept(corrections, request, call, call.meter)
    return pb.RecordCorrectionResponse(kept=KEPT[kept])


async def _kept(
    corrections: Corrections, request: CorrectionRequest, call: Call, meter: UsageMeter | None
) -> Keeping:
    """What is not stored after all costs the caller's day nothing."""
    try:
        return await corrections.record(request, call.client)
    except (NotSaved, Overloaded):
        if meter is not None:
            meter.not_stored(1)
        raise


def correction_of(
    message: pb.RecordCorrectionRequest, registry: AdapterRegistry, visible: Visible
) -> CorrectionRequest:
    """Raises InvalidRequest naming every bad field, and AdapterNotFound for what the caller cannot mean."""
    found = Findings()
    if not found.text("response_id", message.response_id, MAX_ID_BYTES):
        found.add("response_id", "must be the response_id of an answer")
    parts = split_adapter(message.adapter)
    if message.adapter != BASE and (parts is None or parts[1]):
        found.add("adapter", ADAPTER_FORM)
    if len(message.text) > MAX_TEXT:
        found.add("text", f"must have at most {MAX_TEXT} characters: a longer one can be no example")
    elif message.text and not message.text.strip():
        found.add("text", "must not be blank; leave it out where it is not known")
    found.check()
    name = parts[0] if parts is not None else BASE
    if name == BASE:
        return CorrectionRequest(message.response_id, "", message.text)
    return CorrectionRequest(message.response_id, registry.get(name, "", visible).ref.name, message.text)
