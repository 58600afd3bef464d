"""Requests of OpenAI's Responses API as chat completions, so that both have one path to the model.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from router.errors import MOST_FINDINGS, FieldViolation, Findings, InvalidRequest
from router.extensions.openai import errors, fields, requests
from router.extensions.openai.fields import IGNORED, MODERATION, FieldRules, JsonModel, Refusal
from router.names import AUTO
from router.types import MAX_MESSAGES, MAX_STOPS

LOGPROBS = "message.output_text.logprobs"
TEXT_PARTS = ("input_text", "output_text", "text")
NO_STATE = Refusal("no response is kept: send the whole conversation in `input`")
NO_REASONING: tuple[dict[str, Any], ...] = ({}, {"effort": None}, {"effort": "none"}, {"effort": "minimal"})
SAME_IGNORED = ("prompt_cache_options", "prompt_cache_retention", "service_tier", "store")
RULES = FieldRules(
    {
        **{name: IGNORED[name] for name in SAME_IGNORED},
        "stream_options": "the events are the same with and without",
    },
    {
        "background": Refusal("wait for the answer, or stream it", (False,)),
        "context_management": Refusal("no prompt is cut or summarised", ([],)),
        "conversation": NO_STATE,
        "moderation": MODERATION,
        "previous_response_id": NO_STATE,
        "prompt": Refusal("no prompts are kept: send `instructions` and `input`"),
        "reasoning": Refusal("answers have no reasoning apart from the text", NO_REASONING),
        "truncation": Refusal("no prompt is cut", ("disabled",)),
    },
)
NO_ITEM = {
    "item_reference": "item_reference names an item that is not kept here: send the item itself",
    "reasoning": "reasoning items are not supported here: leave them out",
}
NO_PART = {
    "input_image": "images are not supported here: send text",
    "input_file": "files are not supported here: send their text as input_text",
    "input_audio": "audio is not supported here: send text",
}
SAME = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "stream",
    "metadata",
)  # fields of responses and chats
OF_FUNCTION = ("name", "description", "parameters", "strict")
NAMES = (
    (re.compile(r"\bmessages\[\d+\](?:\.\w+(?:\[\d+\])?)*|\bmessages\b(?=:)|^messages$"), "input"),
    (re.compile(r"\bmax(?:_completion)?_tokens\b"), "max_output_tokens"),
    (re.compile(r"\bresponse_format(?:\.json_schema)?\b"), "text.format"),
    (re.compile(r"(?<![\w.])json_schema(?=:)|^json_schema$"), "text.format.schema"),
    (re.compile(r"(?<=\])\.function(?=\.)|(?<=tool_choice)\.function(?=\.)"), ""),
)  # of a chat's fields


def faults(found: Sequence[tuple[tuple[int | str, ...], str]]) -> ValidationError:
    """Texts about places of a value, as pydantic names them."""
    lines = [
        InitErrorDetails(type=PydanticCustomError("refused", "{text}", {"text": text}), loc=place, input=None)
        for place, text in found
    ]
    return ValidationError.from_exception_data("input", lines)


# -- What a conversation is made of


def text_of(value: Any) -> str:
    """A text, or the texts of its parts together. Raises ValidationError naming bad parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of parts")
    if len(value) > requests.MAX_PARTS:
        raise ValueError(f"must have at most {requests.MAX_PARTS} parts, got {len(value)}")
    for i, part in enumerate(value):
        check_part(i, part)
    return "".join(part["text"] for part in value)


def check_part(index: int, part: Any) -> None:
    """Raises ValidationError that says what is wrong with a part of a content."""
    if not isinstance(part, dict):
        raise faults([((index,), "must be an object with type and text")])
    kind = part.get("type")
    if kind not in TEXT_PARTS:
        known = NO_PART.get(kind) if isinstance(kind, str) else None
        raise faults([((index, "type"), known or "must be input_text or output_text")])
    if not isinstance(part.get("text"), str):
        raise faults([((index, "text"), "must be a text")])


Text = Annotated[Any, PlainValidator(text_of)]


class MessageItem(JsonModel):
    """A message; answers may be sent back as they came."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": self.role, "content": self.content}


class CallItem(JsonModel):
    """A function call that the model made."""

    call_id: str
    name: str
    arguments: str

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class CallOutputItem(JsonModel):
    """What a function returned."""

    call_id: str
    output: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}


Item = MessageItem | CallItem | CallOutputItem
ITEMS: Mapping[str, type[Item]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
}


def item_of(value: Any) -> Item:
    """An item of a conversation, by its type. Raises ValidationError, ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    kind = value.get("type", "message")
    model = ITEMS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = NO_ITEM.get(kind) if isinstance(kind, str) else None
        raise faults([(("type",), known or f"must be {', '.join(ITEMS)}")])
    return model.model_validate(value)


_items: TypeAdapter[list[Item]] = TypeAdapter(
    Annotated[list[Annotated[Any, PlainValidator(item_of)]], Field(min_length=1, max_length=MAX_MESSAGES)]
)


def input_of(value: Any) -> Sequence[Item]:
    """The conversation; a text is one message of the user. Raises ValidationError, ValueError."""
    if isinstance(value, str):
        return [MessageItem(role="user", content=value)]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of items")
    if len(value) > MAX_MESSAGES:
        raise ValueError(f"must have at most {MAX_MESSAGES} items, got {len(value)}")
    return _items.validate_python(value)


# -- The request


class TextFormat(JsonModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextFields(JsonModel):
    """Of the text of an answer."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


def only_functions(value: Any) -> Any:
    """Tools, if all are functions. Raises ValidationError naming the others, ValueError."""
    if value is not None and not isinstance(value, list):
        raise ValueError("must be a list")
    if value:
        kinds = ((i, tool.get("type") if isinstance(tool, dict) else None) for i, tool in enumerate(value))
        found = [(i, kind) for i, kind in kinds if kind != "function"]
        if found:
            raise faults([((i, "type"), no_tool(kind)) for i, kind in found[:MOST_FINDINGS]])
    return value


def no_tool(kind: Any) -> str:
    """Why a tool of that kind is refused."""
    name = f"{kind[:40]} is not supported here" if isinstance(kind, str) else "must be there"
    return f"{name}: tools are functions that you run (type function)"


def known_include(value: Any) -> Any:
    """What answers are to include. Raises ValidationError naming what does not exist here."""
    if value is None:
        return value
    if not isinstance(value, list):
        raise ValueError("must be a list")
    text = f"must be {LOGPROBS}: nothing else exists here"
    if unknown := [i for i, name in enumerate(value) if name != LOGPROBS][:MOST_FINDINGS]:
        raise faults([((i,), text) for i in unknown])
    return value


class ResponseBody(JsonModel):
    """POST /v1/responses."""

    rules: ClassVar[FieldRules] = RULES

    input: Annotated[Any, PlainValidator(input_of)]
    model: str = AUTO
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    top_logprobs: int | None = None
    include: Annotated[Any, PlainValidator(known_include)] = None
    text: TextFields = TextFields()
    tools: Annotated[Any, PlainValidator(only_functions)] = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(requests.few_labels)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream: bool | None = None
    routing: requests.RoutingFields = requests.NO_HINTS

    @property
    def logprobs(self) -> bool:
        """Whether the answer shows log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


def parsed(body: bytes) -> tuple[ResponseBody, requests.ChatCompletion]:
    """The request, and the same as a chat completion. Raises InvalidRequest naming every bad field."""
    asked = fields.parsed(ResponseBody, body)
    try:
        return asked, requests.ChatCompletion.model_validate(chat_fields(asked))
    except ValidationError as error:
        found = Findings()
        fields.note(error, requests.ChatCompletion, found)
        found.check()
        raise


def chat_fields(asked: ResponseBody) -> dict[str, Any]:
    """The body of the same chat completion."""
    chat = {name: getattr(asked, name) for name in SAME}
    chat |= {
        "messages": chat_messages(asked),
        "max_completion_tokens": asked.max_output_tokens,
        "response_format": chat_format(asked.text.format),
        "routing": asked.routing,
        "user": asked.user or asked.safety_identifier,
    }
    if asked.logprobs:
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    if asked.tools:
        chat |= {"tools": [chat_tool(tool) for tool in asked.tools]}
        chat["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.tool_choice is not None:
        chat["tool_choice"] = chat_choice(asked.tool_choice)
    return {name: value for name, value in chat.items() if value is not None}


def chat_messages(asked: ResponseBody) -> list[dict[str, Any]]:
    """Instructions and conversation; calls that follow each other are of one message."""
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    for item in asked.input:
        message, last = item.chat(), messages[-1] if messages else {}
        if isinstance(item, CallItem) and last.get("role") == "assistant":
            last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
        else:
            messages.append(message)
    return messages


def chat_format(form: TextFormat | None) -> dict[str, Any] | None:
    """As `response_format`."""
    if form is None or form.type != "json_schema":
        return None if form is None else {"type": form.type}
    if form.schema_ is None:
        raise InvalidRequest([FieldViolation("text.format.schema", "must be there")])
    return {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema_}}


def chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function in the form of a chat's `tools`."""
    return {"type": "function", "function": {key: tool[key] for key in tool if key in OF_FUNCTION}}


def chat_choice(choice: Any) -> Any:
    """A `tool_choice` in the form of a chat's."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


# -- Errors


def error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """As of OpenAI's API, with the names of fields that a body here has."""
    body = errors.error_json(status, reason, message, field)
    error = body["error"]
    error["message"], error["param"] = renamed(error["message"]), renamed(error["param"] or "") or None
    return body


def renamed(text: str) -> str:
    """Names of a chat's fields in `text` as names of a response's.

    >>> renamed("messages[2].content: must not be empty"), renamed("max_tokens")
    ('input: must not be empty', 'max_output_tokens')
    """
    for theirs, ours in NAMES:
        text = theirs.sub(ours, text)
    return text
