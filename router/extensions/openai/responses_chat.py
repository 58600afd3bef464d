"""A request for a response as a chat completion, so that both have one path to the model; and errors of the
chat in the words of the response."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from router.errors import FieldViolation, Findings, InvalidRequest
from router.extensions.openai import fields, requests
from router.extensions.openai.responses import OF_FUNCTION, InputCall, InputText, ResponseBody, TextFormat

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


def parsed(body: bytes) -> tuple[ResponseBody, requests.ChatCompletion]:
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
