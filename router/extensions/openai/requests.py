"""OpenAI's requests as messages of InferenceService.

Fields that OpenAI knows and that cannot be kept are refused by name; unknown ones are ignored, as OpenAI
does. Source: https://platform.openai.com/docs/api-reference (chat, completions, models).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from router.errors import MOST_FINDINGS, FieldViolation, InvalidRequest
from router.names import AUTO, resource_of
from router.server.call import MOST_MODEL
from router.types import (
    MAX_CHOICES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_STOPS,
    SAMPLING_RANGES,
    Continuity,
)
from router.v1 import inference_pb2 as pb

SYSTEM = ("system", "developer")
ROLES = {"user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
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
        refused = invalid(error)
        refused.model = model_in(body)
        raise refused from None


def model_in(body: bytes) -> str:
    """The model that a refused body names, for the log; empty where it cannot be read."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    model = found.get("model") if isinstance(found, dict) else None
    return model[:MOST_MODEL] if isinstance(model, str) else ""


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
