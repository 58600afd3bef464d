"""Requests of OpenAI's Responses API; each is also a chat completion, so both have one path to the model.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from router.errors import MOST_FINDINGS, FieldViolation, Findings, InvalidRequest
from router.extensions.openai import fields, requests
from router.extensions.openai.fields import IGNORED, MODERATION, FieldRules, JsonModel, Refusal
from router.names import AUTO
from router.types import MAX_MESSAGES, MAX_STOPS

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (  # of the API; no answer has anything of the others
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
OF_FUNCTION = ("name", "description", "parameters", "strict")
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


class InputMessage(JsonModel):
    """A message; answers may be sent back as they came."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": self.role, "content": self.content}


class InputText(InputMessage):
    """An input that is a text."""


class InputCall(JsonModel):
    """A function call that the model made."""

    call_id: str
    name: str
    arguments: str

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class InputResult(JsonModel):
    """What a function returned."""

    call_id: str
    output: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}


InputItem = InputMessage | InputCall | InputResult
ITEMS: Mapping[str, type[InputItem]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputResult,
}


def item_of(value: Any) -> InputItem:
    """An item of a conversation, by its type. Raises ValidationError, ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    kind = value.get("type", "message")
    model = ITEMS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = NO_ITEM.get(kind) if isinstance(kind, str) else None
        raise faults([(("type",), known or f"must be {', '.join(ITEMS)}")])
    return model.model_validate(value)


_items: TypeAdapter[list[InputItem]] = TypeAdapter(
    Annotated[list[Annotated[Any, PlainValidator(item_of)]], Field(min_length=1, max_length=MAX_MESSAGES)]
)


def input_of(value: Any) -> Sequence[InputItem]:
    """The conversation; a text is one message of the user. Raises ValidationError, ValueError."""
    if isinstance(value, str):
        return [InputText(role="user", content=value)]
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
    verbosity: Literal["low", "medium", "high"] | None = None  # changes nothing: say it in the prompt


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
    """What answers are to include. Raises ValidationError naming what is unknown."""
    if value is None:
        return value
    if not isinstance(value, list):
        raise ValueError("must be a list")
    if unknown := [i for i, name in enumerate(value) if name not in INCLUDABLE][:MOST_FINDINGS]:
        raise faults([((i,), f"must be one of {', '.join(INCLUDABLE)}") for i in unknown])
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
    def items(self) -> Sequence[InputItem]:
        """The conversation."""
        found: Sequence[InputItem] = self.input
        return found

    @property
    def logprobs(self) -> bool:
        """Whether the answer shows log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


# -- As a chat completion


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
    "user",
    "safety_identifier",
    "routing",
)  # fields of responses and chats
MESSAGE = re.compile(r"messages\[(\d+)\](.*)")
FUNCTION = re.compile(r"(?<=[\]e])\.function(?=\.|$)")  # in tools[0].function.name, tool_choice.function
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}  # of fields, in chats and in responses


def parsed_response(body: bytes) -> tuple[ResponseBody, requests.ChatCompletion]:
    """The request, and the same as a chat completion. Raises InvalidRequest naming every bad field."""
    asked = fields.parsed(ResponseBody, body)
    with in_response_words(asked):
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
        "messages": [message for message, _ in conversation(asked)],
        "max_completion_tokens": asked.max_output_tokens,
        "response_format": chat_format(asked.text.format),
    }
    if asked.logprobs:
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    if asked.tools:
        chat |= {"tools": [chat_tool(tool) for tool in asked.tools]}
        chat["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.tool_choice is not None:
        chat["tool_choice"] = chat_choice(asked.tool_choice)
    return {name: value for name, value in chat.items() if value is not None}


def conversation(asked: ResponseBody) -> list[tuple[dict[str, Any], str]]:
    """Messages of a chat, each with the field that it comes from; calls that follow each other are of one
    message."""
    messages: list[tuple[dict[str, Any], str]] = []
    if asked.instructions:
        messages.append(({"role": "system", "content": asked.instructions}, "instructions"))
    for place, item in enumerate(asked.items):
        message, last = item.chat(), messages[-1][0] if messages else {}
        if isinstance(item, InputCall) and last.get("role") == "assistant":
            last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
        else:
            messages.append((message, "input" if isinstance(item, InputText) else f"input[{place}]"))
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
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return {"type": kind, "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        named = choice.get("tools")
        tools = list(map(chat_choice, named)) if isinstance(named, list) else named
        return {"type": kind, "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    return choice


# -- Errors


@contextmanager
def in_response_words(asked: ResponseBody) -> Iterator[None]:
    """Errors of the block, which name fields of the chat, name those of the response."""
    try:
        yield
    except InvalidRequest as error:
        places = [place for _, place in conversation(asked)]

        def reworded(violation: FieldViolation) -> FieldViolation:
            return FieldViolation(field_of(violation.field, places), description_of(violation.description))

        raise error.reworded(reworded) from None


def field_of(field: str, places: list[str]) -> str:
    """The field of a response that a chat's field comes from; message `i` comes from `places[i]`.

    >>> field_of("messages[1].content", ["instructions", "input[0]"]), field_of("max_tokens", [])
    ('input[0].content', 'max_output_tokens')
    """
    if (found := MESSAGE.fullmatch(field)) is not None and int(found[1]) < len(places):
        place = places[int(found[1])]
        return place + found[2] if place.endswith("]") else place
    return NAMES.get(field, FUNCTION.sub("", field))


def description_of(text: str) -> str:
    """The same description with names of a response's fields."""
    text = re.sub(r"\bmax(?:_completion)?_tokens\b", "max_output_tokens", text)
    return text.replace("messages and max_output_tokens", "input and max_output_tokens")
