"""OpenAI's requests and answers, and the messages of InferenceService that say the same.

Fields that OpenAI knows and that cannot be kept are refused by name; unknown ones are ignored, as OpenAI
does. Source: https://platform.openai.com/docs/api-reference (chat, completions, models).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from router.errors import MOST_FINDINGS, FieldViolation, InvalidRequest
from router.names import AUTO, BASE, model_of, resource_of
from router.server import http
from router.types import (
    MAX_CHOICES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_STOPS,
    SAMPLING_RANGES,
    AdapterInfo,
    AdapterState,
    Continuity,
)
from router.v1 import inference_pb2 as pb

SYSTEM = ("system", "developer")
ROLES = {"user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
OWNER = "lora-router"
MAX_PARTS = 256  # of one message's content
MOST_ERRORS = 2048  # that are built for the sake of the first 32
ANY_OBJECT = '{"type": "object"}'


def nothing(value: Any) -> None:
    """A field that may be there as long as it asks for nothing."""
    if value not in (None, [], {}, False, "none", 0, ""):
        raise ValueError("is not supported here: leave it out")


Nothing = Annotated[None, BeforeValidator(nothing)]


def few_labels(value: Any) -> Any:
    """The labels, if a request may have so many: Pydantic looks at all of them before it counts."""
    if isinstance(value, dict) and len(value) > MAX_LABELS:
        raise ValueError(f"must have at most {MAX_LABELS} entries")
    return value


class JsonModel(BaseModel):
    """Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class ContentPart(JsonModel):
    """Of a message's content: text alone is read."""

    type: Literal["text"]
    text: str


class Message(JsonModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    tool_calls: Nothing = None

    @property
    def text(self) -> str:
        """All of it."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class JsonSchema(JsonModel):
    """Always kept strictly."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(JsonModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(JsonModel):
    """Of a stream."""

    include_usage: bool = False


class MixturePartField(JsonModel):
    """Of answers by several adapters together."""

    adapter: str
    weight: float = 1.0


class RoutingFields(JsonModel):
    """Ours: what the caller knows about where the request belongs."""

    domain: str = ""
    task: str = ""
    unit: str = ""
    explain: bool = False
    mixture: Annotated[list[MixturePartField], Field(max_length=MAX_MIXTURE_PARTS)] = []
    conversation: str = ""
    continuity: Continuity | Literal[""] = ""
    fresh: bool = False


class CompletionFields(JsonModel):
    """What both kinds of completion have."""

    model: str = AUTO
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(few_labels)] | None = None
    response_format: ResponseFormat | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)] | None = None
    grammar: str | None = None
    routing: RoutingFields = RoutingFields()
    logit_bias: Nothing = None


class ChatCompletion(CompletionFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Nothing = None
    functions: Nothing = None
    tool_choice: Annotated[None, BeforeValidator(lambda v: nothing(None if v == "auto" else v))] = None
    audio: Nothing = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=4)] | None = None


class Completion(CompletionFields):
    """POST /v1/completions: the prompt is continued as it is, without a template."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: int | None = None
    echo: Nothing = None
    suffix: Nothing = None
    best_of: Literal[1] | None = None


CompletionBody = ChatCompletion | Completion
Read = TypeVar("Read", bound=JsonModel)


def parsed(kind: type[Read], body: bytes) -> Read:
    """The request. Raises InvalidRequest naming the bad fields, 32 of them at most."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> InvalidRequest:
    """The same, with the names of the fields. Pydantic builds all errors or none, some microseconds each."""
    count = error.error_count()
    if count > MOST_ERRORS:
        return InvalidRequest([FieldViolation("body", f"has {count} errors, too many to name them")])
    entries = error.errors(include_url=False, include_context=False, include_input=False)
    return InvalidRequest(list(map(_violation, entries[:MOST_FINDINGS])), max(0, count - MOST_FINDINGS))


def _violation(entry: Any) -> FieldViolation:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"]).lstrip(".")
    return FieldViolation(field or "body", str(entry["msg"]).removeprefix("Value error, "))


# -- To the messages of InferenceService


def generate_message(completion: CompletionBody, unit: str) -> pb.GenerateRequest:
    """The same request; `unit` is who is served where the body does not say it."""
    message = pb.GenerateRequest(
        input=_input(completion), sampling=_sampling(completion), routing=_routing(completion, unit)
    )
    message.labels.update(completion.metadata or {})
    return message


def stream_message(message: pb.GenerateRequest) -> pb.StreamGenerateRequest:
    """The same, to be streamed."""
    return pb.StreamGenerateRequest(
        input=message.input, sampling=message.sampling, routing=message.routing, labels=message.labels
    )


def _input(completion: CompletionBody) -> pb.Input:
    if isinstance(completion, Completion):
        return pb.Input(
            raw_prompt=completion.prompt if isinstance(completion.prompt, str) else completion.prompt[0]
        )
    leading = 0
    while leading < len(completion.messages) and completion.messages[leading].role in SYSTEM:
        leading += 1
    system = "\n\n".join(message.text for message in completion.messages[:leading])
    turns = [pb.ChatMessage(role=pb.ROLE_SYSTEM, text=system)] if leading else []
    turns += [
        pb.ChatMessage(role=ROLES.get(message.role, pb.ROLE_SYSTEM), text=message.text)
        for message in completion.messages[leading:]
    ]
    return pb.Input(chat=pb.Chat(messages=turns))


DIFFERENT = ("max_tokens", "logprobs")  # in chats and plain completions
SAME = tuple(n for n in SAMPLING_RANGES if n in CompletionFields.model_fields and n not in DIFFERENT)


def _sampling(completion: CompletionBody) -> pb.Sampling:
    message = pb.Sampling()
    fields = {name: getattr(completion, name) for name in SAME}
    if isinstance(completion, ChatCompletion):
        fields["max_tokens"] = (
            completion.max_completion_tokens
            if completion.max_completion_tokens is not None
            else completion.max_tokens
        )
        if completion.logprobs:
            fields["logprobs"] = max(1, completion.top_logprobs or 0)
    else:
        fields |= {"max_tokens": completion.max_tokens, "logprobs": completion.logprobs}
    for name, value in fields.items():
        if value is not None:
            _set(message, name, value)
    stop = (
        completion.stop if isinstance(completion.stop, list) else [completion.stop] if completion.stop else []
    )
    message.stop.extend(stop)
    _constrain(message, completion)
    return message


def _set(message: pb.Sampling, name: str, value: float) -> None:
    try:
        setattr(message, name, value)
    except ValueError:
        raise InvalidRequest([FieldViolation(name, "is out of range")]) from None


def _constrain(message: pb.Sampling, completion: CompletionFields) -> None:
    wanted = [name for name in ("regex", "choice", "grammar") if getattr(completion, name) is not None]
    form = completion.response_format
    if form is not None and form.type != "text":
        wanted.append("response_format")
    if len(wanted) > 1:
        raise InvalidRequest([FieldViolation(wanted[1], f"cannot be asked for together with {wanted[0]}")])
    if completion.regex is not None:
        message.regex = completion.regex
    if completion.grammar is not None:
        message.grammar = completion.grammar
    if completion.choice is not None:
        message.choices.values.extend(completion.choice)
    if form is None:
        return
    if form.type == "text":
        message.unconstrained = not wanted
    elif form.type == "json_object":
        message.json_schema = ANY_OBJECT
    elif form.json_schema is None:
        raise InvalidRequest([FieldViolation("response_format.json_schema", "must be there")])
    else:
        message.json_schema = json.dumps(form.json_schema.schema_)


def _routing(completion: CompletionFields, unit: str) -> pb.Routing:
    hints = completion.routing
    message = pb.Routing(
        adapter=resource_of(completion.model),
        domain=hints.domain,
        task=hints.task,
        unit=hints.unit or completion.user or unit,
        explain=hints.explain,
        conversation=hints.conversation,
        continuity=f"CONTINUITY_{(hints.continuity or 'unspecified').upper()}",
        fresh=hints.fresh,
    )
    for part in hints.mixture:
        message.mixture.add(adapter=resource_of(part.adapter), weight=part.weight)
    return message


# -- From the messages of InferenceService


class AnswerWriter:
    """Writes answers to one request."""

    def __init__(self, completion: CompletionBody) -> None:
        self._chat = isinstance(completion, ChatCompletion)
        self._kind = "chat.completion" if self._chat else "text_completion"
        self._usage = completion.stream_options is not None and completion.stream_options.include_usage
        self._logprobs = bool(completion.logprobs)
        self._top = (completion.top_logprobs or 0) if isinstance(completion, ChatCompletion) else 0
        self._created = int(time.time())
        self._head: dict[str, Any] = {}

    def whole(self, answer: pb.GenerateResponse) -> bytes:
        """The answer in one piece."""
        self._begin(answer.response_id, answer.decision, self._kind)
        text = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        choice = self._choice(
            text if self._chat else {"text": answer.text}, answer.logprobs, FINISH[answer.finish_reason]
        )
        decided = decision_json(answer.decision)
        body = self._head | {"choices": [choice], "usage": usage_json(answer.usage), "routing": decided}
        return json.dumps(body).encode()

    def event(self, event: pb.StreamGenerateResponse) -> bytes:
        """The same as server-sent events."""
        if event.HasField("started"):
            kind = "chat.completion.chunk" if self._chat else self._kind
            self._begin(event.started.response_id, event.started.decision, kind)
            decided = {"routing": decision_json(event.started.decision)}
            first = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
            return self._chunk([self._choice(first, (), None)], decided)
        if event.HasField("delta"):
            text = event.delta.text
            more = {"delta": {"content": text}} if self._chat else {"text": text}
            return self._chunk([self._choice(more, event.delta.logprobs, None)])
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        data = self._chunk([self._choice(last, (), FINISH[event.finished.reason])])
        if self._usage:
            data += self._chunk([], {"usage": usage_json(event.finished.usage)})
        return data + b"data: [DONE]\n\n"

    def _begin(self, response_id: str, decision: pb.Decision, kind: str) -> None:
        self._head = {
            "id": response_id,
            "object": kind,
            "created": self._created,
            "model": model_of(decision),
        }

    def _chunk(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._usage else {}
        return sse(self._head | {"choices": choices} | usage | dict(more or {}))

    def _choice(
        self, text: Mapping[str, Any], logprobs: Sequence[pb.TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        shown = None
        if self._logprobs and logprobs:
            shown = chat_logprobs(logprobs, self._top) if self._chat else text_logprobs(logprobs)
        return {"index": 0, **text, "logprobs": shown, "finish_reason": finish}


def sse(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def decision_json(decision: pb.Decision) -> dict[str, Any]:
    """What was decided, under the names of the proto."""
    return MessageToDict(
        decision, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )


def usage_json(usage: pb.Usage) -> dict[str, Any]:
    """Tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def chat_logprobs(entries: Iterable[pb.TokenLogprob], top: int) -> dict[str, Any]:
    """As chat completions have them."""

    def entry(one: Any) -> dict[str, Any]:
        return {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode())}

    return {"content": [entry(one) | {"top_logprobs": [entry(t) for t in one.top[:top]]} for one in entries]}


def text_logprobs(entries: Sequence[pb.TokenLogprob]) -> dict[str, Any]:
    """As completions have them."""
    offsets, at = [], 0
    for one in entries:
        offsets.append(at)
        at += len(one.token)
    return {
        "tokens": [one.token for one in entries],
        "token_logprobs": [one.logprob for one in entries],
        "top_logprobs": [{t.token: t.logprob for t in one.top} for one in entries],
        "text_offset": offsets,
    }


def models_json(adapters: Iterable[AdapterInfo]) -> dict[str, Any]:
    """`auto`, the base, every name with a default version, and every version."""
    named = [(AUTO, "the adapter that routing picks"), (BASE, "the base alone")]
    for info in adapters:
        if info.state is not AdapterState.QUARANTINED:
            named += [(info.ref.name, info.description)] if info.default else []
            named.append((f"{info.ref.name}@{info.ref.version}", info.description))
    return {"object": "list", "data": [model_json(name, text) for name, text in named]}


def model_json(name: str, description: str) -> dict[str, Any]:
    """One entry."""
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER, "description": description}


FIELDS = {"input.chat.messages": "messages", "input.raw_prompt": "prompt", "routing.adapter": "model"}


def error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """An error in OpenAI's shape; `code` is the reason that gRPC clients get, in lower case."""
    for ours, theirs in FIELDS.items():
        field, message = field.replace(ours, theirs), message.replace(ours, theirs)
    field, message = field.removeprefix("sampling."), message.replace("sampling.", "")
    if reason == "ADAPTER_NOT_FOUND":
        reason, field = "MODEL_NOT_FOUND", "model"
    return http.error_json(status, reason, message, field)
