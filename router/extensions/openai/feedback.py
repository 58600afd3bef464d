"""What became of an answer, told by its id: an outcome, or who should have answered.

A body is one of the messages of `ExperimentService.RecordOutcome` and `InferenceService.RecordCorrection`, in
the words of OpenAI's API.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AliasChoices, AwareDatetime, Field

from router.errors import FieldViolation, Findings, InvalidRequest
from router.extensions.openai import messages
from router.names import AUTO, resource_of
from router.v1 import experiments_pb2 as experiments
from router.v1 import inference_pb2 as pb

OUTCOME = "/router.v1.ExperimentService/RecordOutcome"
CORRECTION = "/router.v1.InferenceService/RecordCorrection"


class Feedback(messages.JsonModel):
    """POST /v1/feedback: `metric` and `value`, or `should_have_been`."""

    response_id: str = Field(min_length=1)
    metric: str | None = Field(None, validation_alias=AliasChoices("metric", "name"))
    value: float | bool | None = None
    time: AwareDatetime | None = None
    idempotency_key: str | None = None
    should_have_been: str | None = Field(None, min_length=1)
    text: str | None = None


def parsed(body: bytes) -> Feedback:
    """Raises InvalidRequest naming every bad field."""
    feedback, found = messages.parsed(Feedback, body), Findings()
    if feedback.should_have_been is None:
        if feedback.metric is None:
            found.add("metric", "must be there, and a value; or should_have_been")
        elif feedback.value is None:
            found.add("value", "must be there: a number, true or false")
        if feedback.text is not None:
            found.add("text", "goes with should_have_been alone")
    else:
        for name in ("metric", "value", "time", "idempotency_key"):
            if getattr(feedback, name) is not None:
                found.add(
                    name, "cannot be told together with should_have_been: send both, one after the other"
                )
    found.check()
    return feedback


def message_of(
    feedback: Feedback,
) -> tuple[str, experiments.RecordOutcomeRequest | pb.RecordCorrectionRequest]:
    """The method that takes it in, and its message."""
    if feedback.should_have_been is not None:
        adapter = resource_of(feedback.should_have_been) or AUTO  # which is nobody, and refused
        return CORRECTION, pb.RecordCorrectionRequest(
            response_id=feedback.response_id, adapter=adapter, text=feedback.text or ""
        )
    outcome = experiments.Outcome(
        response_id=feedback.response_id,
        metric=feedback.metric or "",
        value=float(feedback.value or 0),
        time=None if feedback.time is None else timestamp(feedback.time),
        idempotency_key=feedback.idempotency_key or "",
    )
    return OUTCOME, experiments.RecordOutcomeRequest(outcome=outcome)


def timestamp(time: datetime) -> Timestamp:
    """On the wire. Raises InvalidRequest for what has no place there."""
    made = Timestamp()
    try:
        made.FromDatetime(time)
    except (OverflowError, ValueError):
        raise InvalidRequest([FieldViolation("time", "must be a time between 1970 and 9999")]) from None
    return made


def answer_json(feedback: Feedback, kept: Any) -> dict[str, Any]:
    """What became of it: the names of the proto, in lower case."""
    body = {"object": "feedback", "response_id": feedback.response_id}
    if feedback.should_have_been is not None:
        name = pb.CorrectionKept.Name(kept.kept)
        return body | {"kept": name.removeprefix("CORRECTION_KEPT_").lower()}
    name = experiments.OutcomeStatus.Name(kept.status)
    return body | {"status": name.removeprefix("OUTCOME_STATUS_").lower()}


def error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """As of OpenAI's API, with the names of fields that a body here has."""
    body = messages.error_json(status, reason, in_our_words(message), in_our_words(field))
    if body["error"]["param"] == "model":
        body["error"]["param"] = "should_have_been"
    return body


def in_our_words(text: str) -> str:
    """A field of the messages, or a text that names one."""
    return re.sub(r"\badapter(?=: )|^adapter$", "should_have_been", re.sub(r"\boutcome\.(?=[a-z])", "", text))
