"""OpenAI's requests as messages of InferenceService.

Source: https://platform.openai.com/docs/api-reference (chat, completions, models). `fields.py` says what
happens to fields that no model here has.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from router.errors import FieldViolation, InvalidRequest
from router.extensions.openai.fields import CHAT, COMPLETION, ClosedModel, FieldRules, JsonModel
from router.extensions.openai.tools import (
    Call,
    CalledFunction,
    Calls,
    ToolFields,
    call_message,
    tools_message,
)
from router.names import AUTO, BASE, resource_of
from router.types import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_STOPS,
    SAMPLING_RANGES,
    ConstraintKind,
)
from router.v1 import inference_pb2 as pb

SYSTEM = ("system", "developer")
ROLES = {
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
    "function": pb.ROLE_TOOL,
}
MAX_PARTS = 256  # of one message's content
TOKEN_ID = re.compile(r"[0-9]{1,9}")
MAX_N, MAX_PROMPTS, MAX_ANSWERS = 8, 64, 64  # answers to a prompt, prompts, and answers in all
ANY_OBJECT = '{"type": "object"}'


def few_labels(value: Any) -> Any:
    """The labels, if a request may have so many: Pydantic looks at all of them before it counts."""
    if isinstance(value, dict) and len(value) > MAX_LABELS:
        raise ValueError(f"must have at most {MAX_LABELS} entries")
    return value


def few_biases(value: Any) -> Any:
    """Biases of tokens, if a request may have so many."""
    if isinstance(value, dict):
        if len(value) > MAX_BIASES:
            raise ValueError(f"must have at most {MAX_BIASES} entries")
        if bad := next((token for token in value if TOKEN_ID.fullmatch(token) is None), None):
            raise ValueError(f"must have ids of tokens as keys, not {bad[:32]!r}")
    return value


def strings(value: Any) -> Any:
    """A string is a list of one."""
    if isinstance(value, str):
        return [value]
    if value is None or isinstance(value, list):
        return value
    raise ValueError("must be a string or a list of strings")


def prompts(value: Any) -> Any:
    """Prompts are texts."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) or (isinstance(first, int) and not isinstance(first, bool)):
        raise ValueError("token ids are not supported: send the text")
    return strings(value)


def content_parts(value: Any) -> Any:
    """A text is a list of one part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise ValueError("must be a string or a list of parts of type 'text'")


def text_part(value: Any) -> Any:
    """A part of a message, if it is text; what the model refused to answer is text, too."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "refusal":
        return {"type": "text", "text": value.get("refusal")}
    if kind is not None and kind != "text":
        shown = str(kind)[:32]
        raise PydanticCustomError(
            "part", "parts of type '{kind}' are not supported: messages are text", {"kind": shown}
        )
    return value


def schema_text(value: Any) -> Any:
    """A JSON Schema as text."""
    if isinstance(value, dict):
        return json.dumps(value)
    if value is None or isinstance(value, str):
        return value
    raise ValueError("must be a JSON Schema: an object, or its text")


SchemaText = Annotated[str | None, BeforeValidator(schema_text)]
Texts = Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)]


class ContentPart(JsonModel):
    """Of a message's content."""

    type: Literal["text"]
    text: str


Content = Annotated[
    list[Annotated[ContentPart, BeforeValidator(text_part)]], Field(max_length=MAX_PARTS, fail_fast=True)
]


class Message(JsonModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[Content | None, BeforeValidator(content_parts)] = None
    tool_calls: Calls | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(part.text for part in self.content or ())


class JsonSchema(JsonModel):
    """Always kept strictly."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(JsonModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(ClosedModel):
    """The same in vLLM's form; one of the first five."""

    json_: SchemaText = Field(None, alias="json")
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None


class StreamOptions(ClosedModel):
    """Of a stream. The last two change nothing here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class MixturePartField(ClosedModel):
    """Of answers by several adapters together."""

    adapter: str
    weight: float = 1.0


class RoutingFields(ClosedModel):
    """Ours: what the caller knows about where the request belongs."""

    domain: str = ""
    task: str = ""
    unit: str = ""
    explain: bool = False
    mixture: Annotated[list[MixturePartField], Field(default_factory=list, max_length=MAX_MIXTURE_PARTS)]
    conversation: str = ""
    continuity: Literal["", "adaptive", "sticky", "none"] = ""
    fresh: bool = False


NO_HINTS = RoutingFields.model_validate({})


class CompletionFields(JsonModel):
    """What both kinds of completion have."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[Annotated[list[str], Field(max_length=MAX_STOPS)] | None, BeforeValidator(strings)] = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(few_labels)] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    quote: str | None = None
    from_prompt: str | None = None
    routing: RoutingFields | None = None
    want_labels: bool | None = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(few_biases)] = None


class ChatCompletion(CompletionFields, ToolFields):
    """POST /v1/chat/completions."""

    rules: ClassVar[FieldRules] = CHAT

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=4)] | None = None


class Completion(CompletionFields):
    """POST /v1/completions: the prompt is continued as it is, without a template."""

    rules: ClassVar[FieldRules] = COMPLETION

    prompt: Annotated[
        Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)],
        BeforeValidator(prompts),
    ]
    logprobs: int | None = None


CompletionBody = ChatCompletion | Completion


# -- To the messages of InferenceService


def generate_message(completion: CompletionBody, unit: str) -> pb.GenerateRequest:
    """The same request; `unit` is who is served where the body does not say it. Of several prompts, the
    first."""
    message = pb.GenerateRequest(
        input=_input(completion),
        sampling=_sampling(completion),
        routing=_routing(completion, unit),
        want_labels=completion.want_labels,
    )
    message.labels.update(completion.metadata or {})
    return message


def generate_messages(completion: CompletionBody, unit: str) -> list[pb.GenerateRequest]:
    """The same request for each prompt. Raises InvalidRequest for too many answers in all."""
    messages = [generate_message(completion, unit)]
    for prompt in completion.prompt[1:] if isinstance(completion, Completion) else ():
        message = pb.GenerateRequest()
        message.CopyFrom(messages[0])
        message.input.raw_prompt = prompt
        messages.append(message)
    if len(messages) * (completion.n or 1) > MAX_ANSWERS:
        text = f"times the number of prompts must be at most {MAX_ANSWERS}"
        raise InvalidRequest([FieldViolation("n", text)])
    return messages


def stream_message(message: pb.GenerateRequest) -> pb.StreamGenerateRequest:
    """The same, to be streamed."""
    return pb.StreamGenerateRequest(
        input=message.input,
        sampling=message.sampling,
        routing=message.routing,
        labels=message.labels,
        want_labels=message.want_labels if message.HasField("want_labels") else None,
    )


def _input(completion: CompletionBody) -> pb.Input:
    if isinstance(completion, Completion):
        return pb.Input(raw_prompt=completion.prompt[0])
    leading = leading_system(completion)
    for place, message in enumerate(completion.messages[leading:], start=leading):
        if message.role in SYSTEM:
            text = f"{message.role!r} is allowed at the beginning only"
            raise InvalidRequest([FieldViolation(f"messages[{place}].role", text)])
    system = "\n\n".join(message.text for message in completion.messages[:leading])
    turns = [pb.ChatMessage(role=pb.ROLE_SYSTEM, text=system)] if leading else []
    turns += [_turn(message) for message in completion.messages[leading:]]
    return pb.Input(chat=pb.Chat(messages=turns, tools=tools_message(completion)))


def _turn(message: Message) -> pb.ChatMessage:
    turn = pb.ChatMessage(role=ROLES[message.role], text=message.text)
    if message.tool_calls:
        turn.tool_calls.extend(map(call_message, message.tool_calls))
    elif message.function_call is not None:
        turn.tool_calls.append(call_message(Call(function=message.function_call)))
    if turn.role == pb.ROLE_TOOL:
        turn.tool_call_id = message.tool_call_id or ""
        turn.function = (message.name or "") if message.role == "function" else ""
    return turn


def leading_system(completion: ChatCompletion) -> int:
    """How many messages at the beginning are system texts, which become one."""
    for place, message in enumerate(completion.messages):
        if message.role not in SYSTEM:
            return place
    return len(completion.messages)


DIFFERENT = ("max_tokens", "min_tokens", "top_k", "logprobs")  # in chats and plain completions, or from ours
SAME = tuple(n for n in SAMPLING_RANGES if n in CompletionFields.model_fields and n not in DIFFERENT)


def _sampling(completion: CompletionBody) -> pb.Sampling:
    message = pb.Sampling()
    fields: dict[str, Any] = {name: getattr(completion, name) for name in SAME}
    fields |= {"max_tokens": max_tokens_of(completion), "min_tokens": _min_tokens(completion)}
    fields["top_k"] = 0 if completion.top_k == -1 else completion.top_k  # off, for vLLM
    fields["logprobs"] = completion.logprobs
    if isinstance(completion, ChatCompletion):
        fields["logprobs"] = max(1, completion.top_logprobs or 0) if completion.logprobs else None
    for name, value in fields.items():
        if value is not None:
            _set(message, name, value)
    for token, bias in (completion.logit_bias or {}).items():
        message.logit_bias[int(token)] = bias
    message.stop.extend(filter(None, completion.stop or ()))
    _constrain(message, completion)
    return message


def max_tokens_of(completion: CompletionBody) -> int | None:
    """The most tokens of the answer, if they are given."""
    if isinstance(completion, ChatCompletion) and completion.max_completion_tokens is not None:
        return completion.max_completion_tokens
    return completion.max_tokens


def _min_tokens(completion: CompletionBody) -> int | None:
    if not completion.ignore_eos:
        return completion.min_tokens
    if (most := max_tokens_of(completion)) is None:
        raise InvalidRequest([FieldViolation("ignore_eos", "needs max_tokens")])
    if completion.stop:
        raise InvalidRequest([FieldViolation("ignore_eos", "cannot be asked for together with stop")])
    return most


def _set(message: pb.Sampling, name: str, value: float) -> None:
    try:
        setattr(message, name, value)
    except ValueError:
        raise InvalidRequest([FieldViolation(name, "is out of range")]) from None


class Shape(NamedTuple):
    """What the answer must look like: a field of the body, and the field and value of our message."""

    path: str
    kind: ConstraintKind
    value: Any


def shapes(completion: CompletionFields) -> list[Shape]:
    """All that the body has; at most one is allowed."""
    outputs = completion.structured_outputs or StructuredOutputs.model_validate({})
    form = _format(completion)
    schema = None if form is None or form.json_schema is None else json.dumps(form.json_schema.schema_)
    found = [
        Shape("regex", "regex", completion.regex),
        Shape("choice", "choices", completion.choice),
        Shape("grammar", "grammar", completion.grammar),
        Shape("quote", "quote", completion.quote),
        Shape("from_prompt", "from_prompt", completion.from_prompt),
        Shape("structured_outputs.json", "json_schema", outputs.json_),
        Shape("structured_outputs.regex", "regex", outputs.regex),
        Shape("structured_outputs.choice", "choices", outputs.choice),
        Shape("structured_outputs.grammar", "grammar", outputs.grammar),
        Shape("structured_outputs.json_object", "json_schema", ANY_OBJECT if outputs.json_object else None),
    ]
    if form is not None and form.type == "json_object":
        found.append(Shape("response_format", "json_schema", ANY_OBJECT))
    elif form is not None and form.type == "json_schema":
        found.append(Shape("response_format.json_schema.schema", "json_schema", schema))
    return [shape for shape in found if shape.value is not None]


def _format(completion: CompletionFields) -> ResponseFormat | None:
    """The format of the answer. A call that has to be made has the schema of its function instead."""
    must_call = isinstance(completion, ChatCompletion) and completion.must_call
    return None if must_call else completion.response_format


def _constrain(message: pb.Sampling, completion: CompletionFields) -> None:
    form, wanted = _format(completion), shapes(completion)
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        raise InvalidRequest([FieldViolation("response_format.json_schema", "is missing")])
    if len(wanted) > 1:
        text = f"cannot be asked for together with {wanted[0].path}"
        raise InvalidRequest([FieldViolation(wanted[1].path, text)])
    for shape in wanted:
        if shape.kind == "choices":
            message.choices.values.extend(shape.value)
        else:
            setattr(message, shape.kind, shape.value)
    if form is not None and form.type == "text" and not wanted:
        message.unconstrained = True


def units(completion: CompletionFields, header: str) -> dict[str, str]:
    """Fields of the body that may say who is served, and the header; the first that is set counts."""
    return {
        "routing.unit": completion.routing.unit if completion.routing else "",
        "user": completion.user or "",
        "safety_identifier": completion.safety_identifier or "",
        "x-user-id": header,
    }


# Open WebUI asks the model of a chat for its title, tags and further questions. Nothing marks these requests
# but their text (templates `*_GENERATION_PROMPT_TEMPLATE` of its `config.py`).
TASK, HISTORY = "### Task:\n", "\n<chat_history>\n"


def is_side_task(text: str) -> bool:
    """Whether a front end wrote this text about a conversation, and not its user.

    >>> is_side_task("### Task:\\nGenerate a title.\\n<chat_history>\\nUSER: Hello\\n</chat_history>")
    True
    >>> is_side_task("What is a <chat_history>?")
    False
    """
    return text.startswith(TASK) and HISTORY in text


def _model(completion: CompletionBody) -> str:
    """Who is to answer. A front end's own task goes to the base: its text is no user's request."""
    model, hints = completion.model or AUTO, completion.routing or NO_HINTS
    free = not (resource_of(model) or hints.domain or hints.task or hints.mixture)
    if free and isinstance(completion, ChatCompletion) and is_side_task(completion.messages[-1].text):
        return BASE
    return model


def _routing(completion: CompletionBody, unit: str) -> pb.Routing:
    hints = completion.routing or NO_HINTS
    message = pb.Routing(
        adapter=resource_of(_model(completion)),
        domain=hints.domain,
        task=hints.task,
        unit=next(filter(None, units(completion, unit).values()), ""),
        explain=hints.explain,
        conversation=hints.conversation,
        continuity=f"CONTINUITY_{(hints.continuity or 'unspecified').upper()}",
        fresh=hints.fresh,
    )
    for part in hints.mixture:
        message.mixture.add(adapter=resource_of(part.adapter), weight=part.weight)
    return message
