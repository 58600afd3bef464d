"""Functions in OpenAI's requests and answers: `tools`, `tool_choice`, calls and their results.

Source: https://platform.openai.com/docs/api-reference/chat (tools, tool_choice, messages).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from router.errors import FieldViolation, InvalidRequest
from router.types import MAX_CALL_ID, MAX_TOOL_CALLS, MAX_TOOL_DESCRIPTION, MAX_TOOL_NAME, MAX_TOOLS
from router.v1 import inference_pb2 as pb

CHOICES = {
    "auto": pb.TOOL_CHOICE_AUTO,
    "none": pb.TOOL_CHOICE_NONE,
    "required": pb.TOOL_CHOICE_REQUIRED,
}
Mode = Literal["auto", "none", "required"]
Name = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_NAME, pattern="^[A-Za-z0-9_-]+$")]
FUNCTION_FIELDS = re.compile(r"\b(tools|tool_calls)\[(\d+)\]\.(name|description|parameters|arguments)\b")


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class Function(_Model):
    """A function that the client can run. `strict` is always kept."""

    name: Name
    description: Annotated[str, Field(max_length=MAX_TOOL_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Model):
    """An entry of `tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(_Model):
    """A function of the request."""

    name: Name


class NamedChoice(_Model):
    """The function to call, or a tool of `allowed_tools`."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Model):
    """Those of the tools that count."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedChoice(_Model):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class CalledFunction(_Model):
    """The function of a call, with a JSON object as text."""

    name: Name
    arguments: str = "{}"


class Call(_Model):
    """A call in an earlier message of the assistant."""

    id: Annotated[str, Field(max_length=MAX_CALL_ID)] = ""
    type: Literal["function"] = "function"
    function: CalledFunction


def _choice(value: Any) -> Any:
    """The choice by its kind, so that an error names the fields of that kind alone."""
    if isinstance(value, dict):
        if value.get("type") == "function":
            return NamedChoice.model_validate(value)
        if value.get("type") == "allowed_tools":
            return AllowedChoice.model_validate(value)
    elif value is None or value in ("auto", "none", "required"):
        return value
    raise ValueError(
        "must be auto, none, required, the name of a function as "
        '{"type": "function", "function": {"name": …}}, or of the type allowed_tools'
    )


def _old_form(instead: str) -> Any:
    def refuse(value: Any) -> None:
        if value not in (None, [], "none", "auto"):
            raise ValueError(f"is the form of OpenAI's first releases: send {instead}")

    return Annotated[None, BeforeValidator(refuse)]


class ToolFields(_Model):
    """Fields of a chat completion that offer functions."""

    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[Mode | NamedChoice | AllowedChoice | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    functions: _old_form("tools") = None  # type: ignore[valid-type]
    function_call: _old_form("tool_choice") = None  # type: ignore[valid-type]

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedChoice):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, NamedChoice)


Calls = Annotated[list[Call], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)]


# -- To messages of InferenceService


def tools_message(fields: ToolFields) -> pb.Tools | None:
    """The functions of a request; None where it has none."""
    functions, choice = list(fields.tools or ()), fields.tool_choice
    if not functions:
        if choice not in (None, "auto", "none"):
            raise InvalidRequest([FieldViolation("tool_choice", "needs tools, and there are none")])
        return None
    named = ""
    if isinstance(choice, NamedChoice):
        named, mode = choice.function.name, "required"
        _check_known([named], functions, "tool_choice.function.name")
    elif isinstance(choice, AllowedChoice):
        mode = choice.allowed_tools.mode
        allowed = [one.function.name for one in choice.allowed_tools.tools]
        _check_known(allowed, functions, "tool_choice.allowed_tools.tools")
        functions = [one for one in functions if one.function.name in allowed]
    else:
        mode = choice or "auto"
    return pb.Tools(
        functions=[
            pb.Tool(
                name=one.function.name,
                description=one.function.description or "",
                parameters=json.dumps(one.function.parameters) if one.function.parameters else "",
            )
            for one in functions
        ],
        choice=CHOICES[mode],
        function=named,
        single=fields.parallel_tool_calls is False,
    )


def _check_known(names: Iterable[str], functions: Iterable[FunctionTool], field: str) -> None:
    known = {one.function.name for one in functions}
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest([FieldViolation(field, f"{unknown[0]!r} is the name of none of the tools")])


def call_message(call: Call) -> pb.ToolCall:
    """A call of an earlier message."""
    return pb.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments or "{}")


# -- To OpenAI's answers


def calls_json(calls: Iterable[pb.ToolCall]) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def pieces_json(pieces: Iterable[pb.ToolCallDelta]) -> list[dict[str, Any]]:
    """Pieces of calls, in a chunk: the first of each names the function. A call has one piece in a chunk, as
    some clients read the first alone."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
        if piece.id:
            call |= {"id": piece.id, "type": "function"}
            call["function"]["name"] = piece.name
        call["function"]["arguments"] += piece.arguments
    return list(calls.values())


def in_their_words(text: str) -> str:
    """A field of the messages, or a text that names one, as OpenAI's requests have it."""
    text = text.replace("input.chat.tools.functions", "tools").replace("input.chat.tools", "tools")
    return FUNCTION_FIELDS.sub(r"\1[\2].function.\3", text)
