"""What a request asks: a text, turns of a chat with the functions that it offers, or a raw prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from router.engine.constrained.source import MAX_SCHEMA_DEPTH
from router.errors import Findings
from router.server.tools import FIELD
from router.types import (
    MAX_CALL_ID,
    MAX_CONSTRAINT_BYTES,
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    MAX_TOOL_DESCRIPTION,
    MAX_TOOL_NAME,
    MAX_TOOLS,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
    Tools,
    Turn,
)
from router.v1 import inference_pb2 as pb

ROLES: Mapping[int, Role] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
NAME = re.compile(r"[A-Za-z0-9_-]+")
CHOICES: Mapping[int, ToolChoice] = {
    pb.TOOL_CHOICE_UNSPECIFIED: "auto",
    pb.TOOL_CHOICE_AUTO: "auto",
    pb.TOOL_CHOICE_NONE: "none",
    pb.TOOL_CHOICE_REQUIRED: "required",
}


def prompt_of(
    message: pb.Input, most_bytes: int, found: Findings
) -> tuple[tuple[Turn, ...], str | None, Tools]:
    """Turns or a raw prompt, and the functions of a chat; what is wrong is noted in `found`."""
    kind = message.WhichOneof("input")
    if kind is None:
        found.add("input", "one of text, chat and raw_prompt must be set")
        return (), None, Tools()
    if kind == "chat":
        tools = tools_of(message.chat.tools, found) if message.chat.HasField("tools") else Tools()
        return _turns(message.chat, most_bytes, found), None, tools
    text: str = getattr(message, kind)
    if not text.strip():
        found.add(f"input.{kind}", "must not be empty")
    found.text(f"input.{kind}", text, most_bytes)
    if kind == "raw_prompt":
        return (), text, Tools()
    return (Turn("user", text),), None, Tools()


def _turns(chat: pb.Chat, most_bytes: int, found: Findings) -> tuple[Turn, ...]:
    count = len(chat.messages)
    if not 1 <= count <= MAX_MESSAGES:
        found.add("input.chat.messages", f"must have 1 to {MAX_MESSAGES} entries, got {count}")
        return ()
    turns = tuple(_turn(message, i, found) for i, message in enumerate(chat.messages))
    if turns[-1].role not in ("user", "tool"):
        text = "the last message must be the user's, or the result of a call"
        found.add(f"input.chat.messages[{count - 1}].role", text)
    size = sum(len(turn.text.encode()) for turn in turns)
    size += sum(len(call.arguments.encode()) for turn in turns for call in turn.calls)
    size += sum(len(f"{tool.description}{tool.parameters}".encode()) for tool in chat.tools.functions)
    if size > most_bytes:
        found.add("input.chat.messages", f"must have at most {most_bytes} bytes of text together")
    return turns


def _turn(message: pb.ChatMessage, index: int, found: Findings) -> Turn:
    field = f"input.chat.messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        found.add(f"{field}.role", "must be ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL")
    if role == "system" and index > 0:
        found.add(f"{field}.role", "ROLE_SYSTEM is allowed only for the first message")
    if message.tool_calls and role != "assistant":
        found.add(f"{field}.tool_calls", "are allowed only for ROLE_ASSISTANT")
    if not (message.text.strip() or message.tool_calls or role == "tool"):
        found.add(f"{field}.text", "must not be empty")
    calls = calls_of(message, field, found) if message.tool_calls else ()
    if role != "tool":
        return Turn(role or "user", message.text, calls)
    found.text(f"{field}.tool_call_id", message.tool_call_id, MAX_CALL_ID)
    if message.function:
        _check_name(message.function, f"{field}.function", found)
    return Turn(role, message.text, call_id=message.tool_call_id, function=message.function)


def calls_of(message: pb.ChatMessage, field: str, found: Findings) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn."""
    if len(message.tool_calls) > MAX_TOOL_CALLS:
        found.add(f"{field}.tool_calls", f"must have at most {MAX_TOOL_CALLS} entries")
        return ()
    for i, call in enumerate(message.tool_calls):
        _check_name(call.name, f"{field}.tool_calls[{i}].name", found)
        found.text(f"{field}.tool_calls[{i}].id", call.id, MAX_CALL_ID)
        if not _is_object(call.arguments):
            found.add(f"{field}.tool_calls[{i}].arguments", "must be a JSON object, as text")
    return tuple(ToolCall(call.id, call.name, call.arguments or "{}") for call in message.tool_calls)


def _is_object(text: str) -> bool:
    """Whether it is a JSON object that templates can render; an empty text stands for one without entries."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _depth(value) <= MAX_SCHEMA_DEPTH


def tools_of(message: pb.Tools, found: Findings) -> Tools:
    """The functions; what is wrong is noted in `found`."""
    count = len(message.functions)
    if count > MAX_TOOLS:
        found.add(f"{FIELD}.functions", f"must have at most {MAX_TOOLS} entries, got {count}")
        return Tools()
    choice = CHOICES.get(message.choice)
    if choice is None:
        found.add(f"{FIELD}.choice", "must be TOOL_CHOICE_AUTO, TOOL_CHOICE_NONE or TOOL_CHOICE_REQUIRED")
    functions = tuple(
        _tool(tool, f"{FIELD}.functions[{i}]", found) for i, tool in enumerate(message.functions)
    )
    _check_names(functions, found)
    made = Tools(functions, choice or "auto", message.function, message.single)
    if choice == "required" and not functions:
        found.add(f"{FIELD}.functions", "must have an entry where a call is required")
    elif made.function and choice != "required":
        found.add(f"{FIELD}.function", "goes with TOOL_CHOICE_REQUIRED alone")
    elif made.function and not made.callable:
        found.add(f"{FIELD}.function", "must be the name of one of the functions")
    return made


def _tool(message: pb.Tool, field: str, found: Findings) -> Tool:
    _check_name(message.name, f"{field}.name", found)
    found.text(f"{field}.description", message.description, MAX_TOOL_DESCRIPTION)
    if message.parameters:
        found.text(f"{field}.parameters", message.parameters, MAX_CONSTRAINT_BYTES)
        if problem := schema_problem(message.parameters):
            found.add(f"{field}.parameters", problem)
    return Tool(message.name, message.description, message.parameters)


def _check_name(name: str, field: str, found: Findings) -> None:
    if not (len(name) <= MAX_TOOL_NAME and NAME.fullmatch(name)):
        found.add(field, f"must have 1 to {MAX_TOOL_NAME} letters, digits, underscores and hyphens")


def _check_names(functions: tuple[Tool, ...], found: Findings) -> None:
    first: dict[str, int] = {}
    for i, tool in enumerate(functions):
        if first.setdefault(tool.name, i) != i:
            found.add(f"{FIELD}.functions[{i}].name", f"is the same as that of entry {first[tool.name]}")


def schema_problem(text: str) -> str:
    """Why a text is no schema of arguments; empty if it may be one."""
    if len(text) > MAX_CONSTRAINT_BYTES:
        return ""  # noted already
    try:
        schema = json.loads(text)
    except RecursionError:
        return f"is nested deeper than {MAX_SCHEMA_DEPTH} levels"
    except ValueError as error:
        return f"is not JSON: {error}"
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return 'must be the JSON Schema of an object: {"type": "object", "properties": …}'
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        return f"is nested deeper than {MAX_SCHEMA_DEPTH} levels"
    return ""


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        depth += 1
    return depth
