"""Routes of OpenAI's API: completions, models, and feedback on answers.

A body of feedback is one of the messages of `ExperimentService.RecordOutcome` and
`InferenceService.RecordCorrection`, in the words of OpenAI's API. It names an answer by its id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AliasChoices, AwareDatetime, Field

from router.access.clients import Role
from router.errors import AdapterNotFound, FieldViolation, Findings, InvalidRequest
from router.extensions.openai import messages
from router.names import AUTO, resource_of
from router.ports import AdapterRegistry
from router.server.call import Endpoint
from router.server.http import HttpCall, Reply, Route
from router.server.inference import InferenceService
from router.server.policy import GENERATE, OBSERVE, RECORD, Policy
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


def parsed_feedback(body: bytes) -> Feedback:
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
                    name, "cannot be sent together with should_have_been: send both, one after the other"
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


def feedback_error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """As of OpenAI's API, with the names of fields that a body here has."""
    body = messages.error_json(status, reason, in_our_words(message), in_our_words(field))
    if body["error"]["param"] == "model":
        body["error"]["param"] = "should_have_been"
    return body


def in_our_words(text: str) -> str:
    """A field of the messages, or a text that names one."""
    return re.sub(r"\badapter(?=: )|^adapter$", "should_have_been", re.sub(r"\boutcome\.(?=[a-z])", "", text))


UNIT = "x-user-id"  # who is served, where a proxy in between drops `user`
LIST = replace(OBSERVE, role=Role.INFER)
ROWS: Mapping[str, Policy] = {
    "POST /v1/chat/completions": GENERATE,
    "POST /v1/completions": GENERATE,
    "POST /v1/feedback": RECORD,
    "GET /v1/models": LIST,
    "GET /v1/models/{model}": LIST,
}


def routes(
    inference: InferenceService, registry: AdapterRegistry, endpoints: Mapping[str, Endpoint]
) -> Sequence[Route]:
    """All of them; `endpoints` are the methods of gRPC services."""
    complete = partial(completion, inference)
    chat, plain = (partial(messages.parsed, kind) for kind in (messages.ChatCompletion, messages.Completion))
    listed = partial(models, registry)
    take = partial(take_feedback, endpoints)
    errors = messages.error_json
    return (
        Route("POST", "/v1/chat/completions", complete, chat, errors),
        Route("POST", "/v1/completions", complete, plain, errors),
        Route("POST", "/v1/feedback", take, parsed_feedback, feedback_error_json),
        Route("GET", "/v1/models", listed, error_json=errors),
        Route("GET", "/v1/models/{model:path}", listed, error_json=errors),
    )


async def completion(
    inference: InferenceService, body: messages.CompletionBody, call: HttpCall
) -> Reply | None:
    """A chat or plain completion, whole or streamed."""
    message, written = messages.generate_message(body, call.header(UNIT)), messages.AnswerWriter(body)
    if not body.stream:
        return Reply(written.whole(await inference.Generate(message, call)))

    async def write(event: pb.StreamGenerateResponse) -> None:
        await call.write(written.event(event))

    await inference.stream(messages.stream_message(message), call, write)
    return None


async def take_feedback(
    endpoints: Mapping[str, Endpoint], feedback: Feedback, call: HttpCall
) -> Mapping[str, Any]:
    """Say what became of an outcome or a correction."""
    method, message = message_of(feedback)
    return answer_json(feedback, await endpoints[method].answer(message, call))


async def models(registry: AdapterRegistry, _: None, call: HttpCall) -> Mapping[str, Any]:
    """What can be named as a model: all that the client sees, or the one that the path names."""
    visible = call.client.adapters
    found = messages.models_json(info for info in registry.listed() if info.ref.name in visible)
    wanted = call.path_parameter("model")
    if not wanted:
        return found
    named: Mapping[str, Mapping[str, Any]] = {entry["id"]: entry for entry in found["data"]}
    if wanted not in named:
        raise AdapterNotFound(wanted)
    return named[wanted]
