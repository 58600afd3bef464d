"""Requests of OpenAI's Responses API as chat completions, so that both have one path to the model.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from router.errors import MOST_FINDINGS, FieldViolation, InvalidRequest
from router.extensions.openai import answers, requests
from router.names import AUTO
from router.types import MAX_MESSAGES, MAX_STOPS

LOGPROBS = "message.output_text.logprobs"
TEXT_PARTS = ("input_text", "output_text", "text")
NO_STATE = "is not supported here, since no response is kept: send the whole conversation in `input`"
NO_ITEM = {
    "item_reference": "item_reference names an item that is not kept here: send the item itself",
    "reasoning": "reasoning items are not supported here: leave them out",
}
NO_PART = {
    "input_image": "images are not supported here: send text",
    "input_file": "files are not supported here: send their text as input_text",
    "input_audio": "audio is not supported here: send text",
}
NO_BACKGROUND = "is not supported here: wait for the answer, or stream it"
NO_PROMPTS = "is not supported here, since no prompts are kept: send `instructions` and `input`"
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
NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\bmessages\[\d+\](?:\.\w+(?:\[\d+\])?)*|\bmessages\b(?=:)|^messages$", "input"),
        (r"\bmax(?:_completion)?_tokens\b", "max_output_tokens"),
        (r"\bresponse_format\.json_schema\b", "text.format"),
        (r"\bresponse_format\b", "text.format"),
        (r"(?<![\w.])json_schema(?=:)|^json_schema$", "text.format.schema"),
        (r"(?<=\])\.function(?=\.)|(?<=tool_choice)\.function(?=\.)", ""),
    )
)


def only(text: str, *allowed: Any) -> PlainValidator:
    """For a field that may be absent, null or one of `allowed`; anything else is refused with `text`."""

    def check(value: Any) -> Any:
        if value is not None and value not in allowed:
            raise ValueError(text)
        return value

    return PlainValidator(check)


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


class MessageItem(requests.JsonModel):
    """A message; answers may be sent back as they came."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": self.role, "content": self.content}


class CallItem(requests.JsonModel):
    """A function call that the model made."""

    call_id: str
    name: str
    arguments: str

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class CallOutputItem(requests.JsonModel):
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


class TextFormat(requests.JsonModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextFields(requests.JsonModel):
    """Of the text of an answer; `verbosity` changes nothing."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


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


class ResponseBody(requests.JsonModel):
    """POST /v1/responses."""

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
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None
    routing: requests.RoutingFields = requests.RoutingFields()
    truncation: Annotated[Any, only("must be disabled: no prompt is ever cut", "disabled")] = None
    previous_response_id: Annotated[Any, only(NO_STATE)] = None
    conversation: Annotated[Any, only(NO_STATE)] = None
    background: Annotated[Any, only(NO_BACKGROUND, False)] = None
    prompt: Annotated[Any, only(NO_PROMPTS)] = None

    @property
    def logprobs(self) -> bool:
        """Whether the answer shows log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


def parsed(body: bytes) -> tuple[ResponseBody, requests.ChatCompletion]:
    """The request, and the same as a chat completion. Raises InvalidRequest naming every bad field."""
    asked = requests.parsed(ResponseBody, body)
    try:
        return asked, requests.ChatCompletion.model_validate(chat_fields(asked))
    except ValidationError as error:
        raise requests.invalid(error) from None


def chat_fields(asked: ResponseBody) -> dict[str, Any]:
    """The body of the same chat completion."""
    fields = {name: getattr(asked, name) for name in SAME}
    fields |= {
        "messages": chat_messages(asked),
        "max_completion_tokens": asked.max_output_tokens,
        "response_format": chat_format(asked.text.format),
        "routing": asked.routing,
        "user": asked.user or asked.safety_identifier,
    }
    if asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    if asked.tools:
        fields |= {"tools": [chat_tool(tool) for tool in asked.tools]}
        fields["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.tool_choice is not None:
        fields["tool_choice"] = chat_choice(asked.tool_choice)
    return {name: value for name, value in fields.items() if value is not None}


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
    body = answers.error_json(status, reason, message, field)
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
