"""A request as a message has it, checked and made neutral: what it asks, how it is routed and sampled.

Every bad field of a request is named in one InvalidRequest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from router.engine.constrained.objects import with_closed_objects
from router.engine.constrained.source import MAX_SCHEMA_DEPTH, check_size
from router.errors import Findings
from router.names import ADAPTER_FORM, BASE, adapter_rule, split_adapter
from router.server.tools import FIELD, forced
from router.types import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_CALL_ID,
    MAX_CONSTRAINT_BYTES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_MIXTURE_WEIGHT,
    MAX_STOP_BYTES,
    MAX_STOPS,
    MAX_TOOL_CALLS,
    MAX_TOOL_DESCRIPTION,
    MAX_TOOL_NAME,
    MAX_TOOLS,
    SAMPLING_RANGES,
    Constraint,
    Continuity,
    LogitBias,
    Request,
    Role,
    RoutingHints,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    Tools,
    Turn,
)
from router.v1 import inference_pb2 as pb

# What a request may have at most, beside what the settings say.
MAX_LABEL_BYTES, MAX_HINT_BYTES, MAX_UNIT_BYTES = 64, 64, 256
CONTINUITY: Mapping[int, Continuity | Literal[""]] = {
    pb.CONTINUITY_UNSPECIFIED: "",
    pb.CONTINUITY_ADAPTIVE: "adaptive",
    pb.CONTINUITY_STICKY: "sticky",
    pb.CONTINUITY_NONE: "none",
}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the settings let a request have at most."""

    max_prompt_bytes: int
    max_tokens: int


def generate_request(
    message: pb.GenerateRequest | pb.StreamGenerateRequest, response_id: str, limits: RequestLimits
) -> Request:
    """A request for an answer, which will have that id."""
    found = Findings()
    turns, raw_prompt, tools = prompt_of(message.input, limits.max_prompt_bytes, found)
    sampling = sampling_of(message.sampling, limits.max_tokens, found)
    request = Request(
        response_id,
        turns,
        raw_prompt,
        sampling=forced(sampling, tools, found) if tools.choice == "required" else sampling,
        routing=_hints(message.routing, found),
        labels=_labels(message.labels, found),
        tools=tools,
        want_labels=message.want_labels if message.HasField("want_labels") else None,
    )
    found.check()
    return request


def route_request(
    message: pb.RouteRequest | pb.CountTokensRequest, response_id: str, limits: RequestLimits
) -> Request:
    """A request for a decision or a count."""
    found = Findings()
    turns, raw_prompt, tools = prompt_of(message.input, limits.max_prompt_bytes, found)
    request = Request(response_id, turns, raw_prompt, routing=_hints(message.routing, found), tools=tools)
    found.check()
    return request


def _hints(message: pb.Routing, found: Findings) -> RoutingHints:
    if message.adapter not in ("", BASE) and split_adapter(message.adapter) is None:
        found.add("routing.adapter", adapter_rule(message.adapter))
    return RoutingHints(
        adapter=message.adapter,
        domain=found.text("routing.domain", message.domain, MAX_HINT_BYTES),
        task=found.text("routing.task", message.task, MAX_HINT_BYTES),
        unit=found.text("routing.unit", message.unit, MAX_UNIT_BYTES),
        explain=message.explain,
        mixture=mixture_of(message, found),
        conversation=found.text("routing.conversation", message.conversation, MAX_UNIT_BYTES),
        continuity=_continuity(message.continuity, found),
        fresh=message.fresh,
    )


def _continuity(value: pb.Continuity, found: Findings) -> Continuity | Literal[""]:
    known = CONTINUITY.get(value)
    if known is None:
        found.add("routing.continuity", "must be CONTINUITY_ADAPTIVE, CONTINUITY_STICKY or CONTINUITY_NONE")
    return known or ""


def _labels(labels: Mapping[str, str], found: Findings) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        found.add("labels", f"must have at most {MAX_LABELS} entries, got {len(labels)}")
        return {}
    for key, value in labels.items():
        found.text("labels", key, MAX_LABEL_BYTES)
        found.text(f"labels[{key[:MAX_LABEL_BYTES]}]", value, MAX_LABEL_BYTES)
        if not key:
            found.add("labels", "keys must not be empty")
    return dict(labels)


# -- Sampling: each given field is checked against the range in the proto's comments.


def sampling_of(message: pb.Sampling, max_tokens_limit: int, found: Findings) -> Sampling:
    """What the caller sets; a field that is not set stays None, an explicit 0 stays 0."""
    given: dict[str, float | int] = {}
    for field, allowed in SAMPLING_RANGES.items():
        if not message.HasField(field):
            continue
        if field in ("max_tokens", "min_tokens"):
            allowed = replace(allowed, high=max_tokens_limit)
        given[field] = value = getattr(message, field)
        if not math.isfinite(value):
            found.add(f"sampling.{field}", "must be a finite number")
        elif value not in allowed:
            found.add(f"sampling.{field}", f"must be in {allowed}, got {value:g}")
    if "max_tokens" in given and given.get("min_tokens", 0) > given["max_tokens"] >= 1:
        found.add("sampling.min_tokens", "must not be more than max_tokens")
    stop, constraint = _stops(message.stop, found), constraint_of(message, found)
    bias = _logit_bias(message.logit_bias, found)
    return Sampling(stop=stop, constraint=constraint, logit_bias=bias, **given)  # type: ignore[arg-type]  # the proto fixes int or float for each


def _logit_bias(biases: Mapping[int, float], found: Findings) -> LogitBias | None:
    if len(biases) > MAX_BIASES:
        found.add("sampling.logit_bias", f"must have at most {MAX_BIASES} entries, got {len(biases)}")
        return None
    for token, bias in biases.items():
        if not abs(bias) <= MAX_BIAS:  # nor NaN
            text = f"must be in [{-MAX_BIAS:g}, {MAX_BIAS:g}], got {bias:g}"
            found.add(f"sampling.logit_bias[{token}]", text)
    return tuple(sorted(biases.items())) or None


def constraint_of(message: pb.Sampling, found: Findings) -> Constraint | None:
    """What the answer must look like; what is wrong inside is found when the engine compiles it."""
    kind = message.WhichOneof("constraint")
    if kind is None:
        return None
    if kind == "unconstrained":
        return Constraint(kind) if message.unconstrained else None
    if kind == "choices":
        made = Constraint(kind, choices=tuple(message.choices.values))
    else:
        made = with_closed_objects(Constraint(kind, getattr(message, kind)))
    field = "sampling.choices.values" if kind == "choices" else f"sampling.{kind}"
    check_size(made, field, found)
    return made


def _stops(stops: Iterable[str], found: Findings) -> tuple[str, ...] | None:
    strings = tuple(stops)
    if len(strings) > MAX_STOPS:
        found.add("sampling.stop", f"must have at most {MAX_STOPS} entries, got {len(strings)}")
        return None
    for i, stop in enumerate(strings):
        if not stop:
            found.add(f"sampling.stop[{i}]", "must not be empty")
        found.text(f"sampling.stop[{i}]", stop, MAX_STOP_BYTES)
    return strings or None


# -- What it asks: a text, turns of a chat with functions, or a raw prompt.

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


MIXTURE = "routing.mixture"
DIGITS = 3  # of a weight after the point: so many different mixtures there are, and no more


def mixture_of(message: pb.Routing, found: Findings) -> tuple[tuple[str, float], ...]:
    """The names and weights of a request, each weight in thousandths; what is wrong is noted in `found`."""
    parts = message.mixture
    if not parts:
        return ()
    if message.adapter or message.domain or message.task:
        found.add(MIXTURE, "names who answers: leave out adapter, domain and task")
    if len(parts) > MAX_MIXTURE_PARTS:
        found.add(MIXTURE, f"must have at most {MAX_MIXTURE_PARTS} parts, got {len(parts)}")
        return ()
    named = tuple((part.adapter, _weight(part, number, found)) for number, part in enumerate(parts))
    for number, (name, _) in enumerate(named):
        _check_part(name, f"{MIXTURE}[{number}].adapter", found)
    if not any(weight for _, weight in named):
        found.add(MIXTURE, "must have a weight that is not 0, to three digits after the point")
    return named


def _weight(part: pb.MixturePart, number: int, found: Findings) -> float:
    field, weight = f"{MIXTURE}[{number}].weight", part.weight
    if not math.isfinite(weight):
        found.add(field, "must be a finite number")
        return 0.0
    if abs(weight) > MAX_MIXTURE_WEIGHT:
        most = MAX_MIXTURE_WEIGHT
        found.add(field, f"must be in [{-most:g}, {most:g}], got {weight:g}")
    return round(weight, DIGITS) + 0.0  # -0.0 is 0.0


def _check_part(name: str, field: str, found: Findings) -> None:
    parts = split_adapter(name)
    if name == BASE or (parts is not None and parts[0] == BASE):
        found.add(field, "must not be the base: adapters are added to it")
    elif parts is None:
        found.add(field, f"must be {ADAPTER_FORM}")
