"""Routes of OpenAI's API: completions, models, and feedback on answers.

A body of feedback is a message of `FeedbackService.RecordFeedback` or `ExperimentService.RecordOutcome`,
in the words of OpenAI's API. It names an answer by its id.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AwareDatetime, BeforeValidator, Field

from router.access.clients import Role
from router.errors import FailedPrecondition, FieldViolation, Findings, InvalidRequest
from router.extensions.openai import answers, errors, requests
from router.extensions.openai.fields import JsonModel, parsed
from router.names import AUTO, bare_response_id, known_names, model_name, resource_of
from router.ports import AdapterRegistry
from router.server.call import Endpoint
from router.server.choices import answer_all, stream_all
from router.server.http import HttpCall, Reply, Route
from router.server.inference import InferenceService
from router.server.policy import GENERATE, OBSERVE, RECORD_TEXTS, Policy
from router.v1 import experiments_pb2 as experiments
from router.v1 import feedback_pb2 as feedback_pb
from router.v1 import inference_pb2 as pb

OUTCOME = "/router.v1.ExperimentService/RecordOutcome"
FEEDBACK = "/router.v1.FeedbackService/RecordFeedback"
MODELS = "models: adapters that a request can name"
VERDICTS = {"good": feedback_pb.FEEDBACK_VERDICT_GOOD, "bad": feedback_pb.FEEDBACK_VERDICT_BAD}
JUDGEMENTS = ("feedback", "corrected", "should_have_been")
OF_KIND: Mapping[str, Sequence[str]] = {
    "feedback": (*JUDGEMENTS, "comment", "answered_by", "prompt", "answer", "user"),
    "metric": ("metric", "value", "time", "idempotency_key"),
}  # fields of the two kinds


def number(value: Any) -> Any:
    """A number; true is 1, and false 0."""
    if value is not None and not isinstance(value, int | float):
        raise ValueError("must be a number, true or false")
    return value if value is None else float(value)


def time_text(value: Any) -> Any:
    """A time is text."""
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a time, such as 2027-01-31T09:30:00Z")
    return value


class Feedback(JsonModel):
    """POST /v1/feedback: `feedback`, `corrected` or `should_have_been`, or `metric` and `value`."""

    response_id: str = Field(min_length=1)
    feedback: Literal["good", "bad"] | None = None
    corrected: str | None = Field(None, min_length=1)
    comment: str | None = None
    answered_by: str | None = None
    prompt: str | None = None
    answer: str | None = None
    user: str | None = None
    metric: str | None = None
    value: Annotated[float | None, BeforeValidator(number)] = None
    time: Annotated[AwareDatetime | None, Field(strict=False), BeforeValidator(time_text)] = None
    idempotency_key: str | None = None
    should_have_been: str | None = Field(None, min_length=1)

    @property
    def kind(self) -> str:
        """The kind of it: a key of `OF_KIND`."""
        judged = any(getattr(self, name) is not None for name in JUDGEMENTS)
        return "feedback" if judged else "metric"


def parsed_feedback(body: bytes) -> Feedback:
    """Raises InvalidRequest naming every bad field."""
    feedback, found = parsed(Feedback, body), Findings()
    if feedback.kind == "metric":
        if feedback.metric is None:
            found.add("metric", "must be there, and a value; or feedback, corrected or should_have_been")
        elif feedback.value is None:
            found.add("value", "must be there: a number, true or false")
    for kind, names in OF_KIND.items():
        for name in names if kind != feedback.kind else ():
            if getattr(feedback, name) is not None:
                found.add(name, _apart(name, feedback))
    found.check()
    return feedback


def _apart(name: str, feedback: Feedback) -> str:
    """Why a field of another kind is refused."""
    if name in OF_KIND["feedback"]:
        return f"goes with {', '.join(JUDGEMENTS[:-1])} or {JUDGEMENTS[-1]} alone"
    judged = next(one for one in JUDGEMENTS if getattr(feedback, one) is not None)
    return f"cannot be sent together with {judged}: send both, one after the other"


def message_of(
    feedback: Feedback,
) -> tuple[str, experiments.RecordOutcomeRequest | feedback_pb.RecordFeedbackRequest]:
    """The method that takes it in, and its message."""
    rid = bare_response_id(feedback.response_id)
    if feedback.kind == "feedback":
        named = feedback.should_have_been
        better = "" if named is None else resource_of(named) or AUTO  # which is nobody, and refused
        return FEEDBACK, feedback_pb.RecordFeedbackRequest(
            response_id=rid,
            verdict=VERDICTS.get(feedback.feedback or "", feedback_pb.FEEDBACK_VERDICT_UNSPECIFIED),
            corrected=feedback.corrected or "",
            comment=feedback.comment or "",
            answered_by=resource_of(feedback.answered_by or ""),
            prompt=feedback.prompt or "",
            answer=feedback.answer or "",
            unit=feedback.user or "",
            should_have_been=better,
        )
    outcome = experiments.Outcome(
        response_id=rid,
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
    if feedback.kind == "feedback":
        name = feedback_pb.FeedbackKept.Name(kept.kept)
        return body | {"kept": name.removeprefix("FEEDBACK_KEPT_").lower(), "replaced": kept.replaced}
    name = experiments.OutcomeStatus.Name(kept.status)
    return body | {"status": name.removeprefix("OUTCOME_STATUS_").lower()}


def feedback_error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """As of OpenAI's API, with the names of fields that a body here has."""
    body = errors.error_json(status, reason, in_our_words(message), in_our_words(field))
    if body["error"]["param"] == "model":
        body["error"]["param"] = "should_have_been"
    return body


def in_our_words(text: str) -> str:
    """A field of the messages, or a text that names one."""
    text = re.sub(r"\bverdict(?=: )|^verdict$", "feedback", re.sub(r"\bunit(?=: )|^unit$", "user", text))
    return re.sub(r"\boutcome\.(?=[a-z])", "", text)


UNIT = "x-user-id"  # who is served, where a proxy in between drops `user`
LIST = replace(OBSERVE, role=Role.INFER)
ROWS: Mapping[str, Policy] = {
    "POST /v1/chat/completions": GENERATE,
    "POST /v1/completions": GENERATE,
    "POST /v1/feedback": RECORD_TEXTS,
    "GET /v1/models": LIST,
    "GET /v1/models/{model}": LIST,
}


def routes(
    inference: InferenceService, registry: AdapterRegistry, endpoints: Mapping[str, Endpoint]
) -> Sequence[Route]:
    """All of them; `endpoints` are the methods of gRPC services."""
    complete = partial(completion, inference)
    chat, plain = (partial(parsed, kind) for kind in (requests.ChatCompletion, requests.Completion))
    listed = partial(models, registry, time.time())
    take = partial(take_feedback, endpoints)
    return (
        Route("POST", "/v1/chat/completions", complete, chat, errors.error_json),
        Route("POST", "/v1/completions", complete, plain, errors.error_json),
        Route("POST", "/v1/feedback", take, parsed_feedback, feedback_error_json),
        Route("GET", "/v1/models", listed, error_json=errors.error_json, title=MODELS),
        Route("GET", "/v1/models/{model:path}", listed, error_json=errors.error_json),
    )


async def completion(
    inference: InferenceService, body: requests.CompletionBody, call: HttpCall
) -> Reply | None:
    """A chat or plain completion, whole or streamed."""
    unit = call.header(UNIT)
    messages, n = requests.generate_messages(body, unit), body.n or 1
    written = answers.AnswerWriter(body, inference.base_digest)

    async def write(place: int, event: pb.StreamGenerateResponse) -> None:
        await call.write(written.event(place, event))

    with errors.in_their_words(body, unit):
        if len(messages) * n > 1:
            if not body.stream:
                return Reply(written.whole(await answer_all(inference, messages, n, call)))
            await stream_all(inference, messages, n, call, write)
        elif not body.stream:
            return Reply(written.whole([await inference.Generate(messages[0], call)]))
        else:
            await inference.stream(requests.stream_message(messages[0]), call, partial(write, 0))
    return None


async def take_feedback(
    endpoints: Mapping[str, Endpoint], feedback: Feedback, call: HttpCall
) -> Mapping[str, Any]:
    """Say what became of it."""
    method, message = message_of(feedback)
    if method not in endpoints:
        raise FailedPrecondition(f"{method.removeprefix('/')} is not served here")
    return answer_json(feedback, await endpoints[method].answer(message, call))


async def models(registry: AdapterRegistry, since: float, _: None, call: HttpCall) -> Mapping[str, Any]:
    """What can be named as a model: all that the client sees, or the one that the path names. `since`: when
    the server started, in unix seconds."""
    visible = call.client.adapters
    found = answers.models_json((info for info in registry.listed() if info.ref.name in visible), since)
    wanted = call.path_parameter("model")
    if not wanted:
        return found
    named: Mapping[str, Mapping[str, Any]] = {entry["id"]: entry for entry in found["data"]}
    same = model_name(resource_of(wanted) or AUTO)
    if same not in named:
        raise errors.model_not_found(wanted, known_names(same, named))
    return named[same]
