"""What callers say as proto messages, and what servers answer as values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from router.client.values import (
    CONSTRAINTS,
    ROUTING,
    SAMPLING,
    Adapter,
    DefaultChange,
    Delta,
    Event,
    FeedbackOptions,
    FeedbackRecorded,
    Finished,
    GenerateOptions,
    Prompt,
    RouteOptions,
    Started,
    ToolCallDelta,
    Unloaded,
    check_known,
)
from router.conversion import logprob_of, read, timestamp
from router.feedback.model import RAW, VERDICTS, Feedback
from router.names import BASE, bare_response_id, split_adapter
from router.types import (
    CONTINUITIES,
    AdapterEvent,
    Override,
    Turn,
)
from router.v1 import adapters_pb2, feedback_pb2
from router.v1 import inference_pb2 as pb

E = TypeVar("E", bound=StrEnum)

FEEDBACK_TEXTS = ("corrected", "comment", "prompt", "answer", "unit")
_ROLES = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


_ROLE_NAMES = {number: name for name, number in _ROLES.items()}


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """The unary request; TypeError for an unknown option."""
    check_known(options, GenerateOptions)
    _check_texts(options.get("labels", {}), "labels")
    return pb.GenerateRequest(
        input=_input(prompt, options),
        sampling=_sampling(options),
        routing=_routing(options),
        labels=dict(options.get("labels", {})),
        want_labels=options.get("want_labels"),
    )


def stream_request(prompt: Prompt, options: GenerateOptions) -> pb.StreamGenerateRequest:
    """The streaming request: the same fields."""
    unary = generate_request(prompt, options)
    return pb.StreamGenerateRequest(
        input=unary.input,
        sampling=unary.sampling,
        routing=unary.routing,
        labels=unary.labels,
        want_labels=options.get("want_labels"),
    )


def route_request(prompt: Prompt, options: RouteOptions) -> pb.RouteRequest:
    """Where would it go."""
    check_known(options, RouteOptions)
    return pb.RouteRequest(input=_input(prompt, options), routing=_routing(options))


def count_request(prompt: Prompt, options: RouteOptions) -> pb.CountTokensRequest:
    """How long is it."""
    check_known(options, RouteOptions)
    return pb.CountTokensRequest(input=_input(prompt, options), routing=_routing(options))


def feedback_request(
    response_id: str, verdict: str, options: FeedbackOptions
) -> feedback_pb2.RecordFeedbackRequest:
    """What a user thinks of an answer; TypeError for an unknown option, ValueError for another verdict."""
    check_known(options, FeedbackOptions)
    if verdict not in ("", *VERDICTS):
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, or empty, not {verdict!r}")
    texts = {name: _utf8(options.get(name, ""), name) for name in FEEDBACK_TEXTS}  # type: ignore[arg-type]
    by, better = (_utf8(options.get(name, ""), name) for name in ("answered_by", "should_have_been"))  # type: ignore[arg-type]
    return feedback_pb2.RecordFeedbackRequest(
        response_id=bare_response_id(_utf8(response_id, "response_id")),
        verdict=f"FEEDBACK_VERDICT_{(verdict or 'unspecified').upper()}",
        answered_by=BASE if by == BASE else resource_name(by),
        should_have_been=BASE if better == BASE else resource_name(better),
        **texts,
    )


def to_recorded(message: feedback_pb2.RecordFeedbackResponse) -> FeedbackRecorded:
    """What became of it."""
    texts = message.kept == feedback_pb2.FEEDBACK_KEPT_TEXTS
    return FeedbackRecorded("texts" if texts else "labels", message.replaced)


def feedback_page_request(adapter: str, since: float) -> feedback_pb2.ListFeedbackRequest:
    """The first page of feedback on an adapter, NAME or `base`."""
    return feedback_pb2.ListFeedbackRequest(
        adapter=BASE if adapter == BASE else resource_name(adapter),
        since=timestamp(since),
        page_size=500,
    )


def resource_name(adapter: str) -> str:
    """NAME, NAME@VERSION or a resource name, as a resource name; empty stays empty, `base` is the base's."""
    if not adapter or adapter.startswith("adapters/"):
        return adapter
    name, _, version = adapter.partition("@")
    return f"adapters/{name}/versions/{version}" if version else f"adapters/{name}"


def _input(prompt: Prompt, options: RouteOptions) -> pb.Input:
    """Text, chat or raw prompt. `system` turns a text into a chat; it cannot go with `raw`."""
    system, raw = options.get("system", ""), options.get("raw", False)
    tools = _tools(options)
    if raw:
        if system or tools is not None or not isinstance(prompt, str):
            raise TypeError("raw continues one text as it is: no system text, no turns, no tools")
        return pb.Input(raw_prompt=_utf8(prompt, "prompt"))
    if isinstance(prompt, str) and not system and tools is None:
        return pb.Input(text=_utf8(prompt, "prompt"))
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system:
        turns.insert(0, Turn("system", system))
    messages = [_chat_message(turn, number) for number, turn in enumerate(turns, 1)]
    return pb.Input(chat=pb.Chat(messages=messages, tools=tools))


def _tools(options: RouteOptions) -> pb.Tools | None:
    """Functions that the model may call; None where there are none."""
    tools, choice = options.get("tools", ()), options.get("tool_choice", "auto")
    if not tools:
        return None
    named = choice not in ("auto", "none", "required")
    if named and choice not in [tool.name for tool in tools]:
        raise ValueError(f"tool_choice must be auto, none, required or a name of tools, not {choice!r}")
    for tool in tools:
        _check_texts((tool.name, tool.description, tool.parameters), f"tool {tool.name!r}")
    return pb.Tools(
        functions=[
            pb.Tool(name=tool.name, description=tool.description, parameters=tool.parameters)
            for tool in tools
        ],
        choice=f"TOOL_CHOICE_{'REQUIRED' if named else choice.upper()}",
        function=choice if named else "",
        single=not options.get("parallel_tool_calls", True),
    )


def _routing(options: RouteOptions) -> pb.Routing:
    """The caller's hints."""
    fields = {name: options[name] for name in ROUTING if name in options}  # type: ignore[literal-required]
    for name in ("adapter", *fields):
        _check_texts(options.get(name, ""), name)
    mixture = options.get("mixture", {})
    _check_texts(mixture.keys(), "mixture")
    parts = (pb.MixturePart(adapter=resource_name(n), weight=w) for n, w in mixture.items())
    mode = options.get("continuity", "unspecified")
    if mode not in (*CONTINUITIES, "unspecified"):
        raise ValueError(f"continuity must be one of {', '.join(CONTINUITIES)}, not {mode!r}")
    return pb.Routing(
        adapter=resource_name(options.get("adapter", "")),
        mixture=parts,
        continuity=f"CONTINUITY_{mode.upper()}",
        **fields,
    )


def _sampling(options: GenerateOptions) -> pb.Sampling:
    fields = {name: options[name] for name in SAMPLING if name in options}  # type: ignore[literal-required]
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    _check_texts(fields.get("stop", ()), "stop")
    return pb.Sampling(**fields, **_constraint(options))


def _constraint(options: GenerateOptions) -> dict[str, Any]:
    """What the answer must look like, as the field that says it; TypeError for two of them."""
    given = [name for name in CONSTRAINTS if options.get(name) is not None]
    if len(given) > 1:
        raise TypeError(f"an answer has one constraint, not both {given[0]} and {given[1]}")
    if not given:
        return {}
    value: Any = options[given[0]]
    if given[0] == "json_schema" and not isinstance(value, str):
        value = json.dumps(value)
    if given[0] == "choices":
        if isinstance(value, str):
            raise TypeError("choices are several texts, not one")
        value = tuple(value)
    _check_texts(value, given[0])
    return {given[0]: pb.Sampling.Choices(values=value) if given[0] == "choices" else value}


def _chat_message(turn: Turn, number: int) -> pb.ChatMessage:
    role = _ROLES.get(turn.role)
    if role is None:
        known = "system, user, assistant or tool"
        raise ValueError(f"turn {number}: role {turn.role!r} is not known to the server: use {known}")
    for call in turn.calls:
        _check_texts((call.id, call.name, call.arguments), f"turn {number}")
    calls = [pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.calls]
    return pb.ChatMessage(
        role=role,
        text=_utf8(turn.text, f"turn {number}"),
        tool_calls=calls,
        tool_call_id=_utf8(turn.call_id, f"turn {number}"),
        function=_utf8(turn.function, f"turn {number}"),
    )


def _utf8(text: str, where: str) -> str:
    """The text. Raises ValueError for one that UTF-8, and so gRPC, cannot hold."""
    half = re.search("[\ud800-\udfff]", text)
    if half is None:
        return text
    code = f"U+{ord(half[0]):04X} at {half.start()}"
    raise ValueError(
        f"{where}: holds half a character, the lone surrogate {code}: read the text anew as UTF-8, "
        "or replace it: text.encode('utf-8', errors='replace').decode()"
    )


def _check_texts(value: Any, where: str) -> None:
    """Looks at every text in an option."""
    if isinstance(value, str):
        _utf8(value, where)
    elif isinstance(value, Mapping):
        for item in (*value.keys(), *value.values()):
            _check_texts(item, where)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            _check_texts(item, where)


# -- What servers answer. A member that a newer server sends becomes the one that says the least.

EVENTS: Mapping[str, type[Started | Finished]] = {"started": Started, "finished": Finished}


def to_events(message: pb.StreamGenerateResponse) -> Sequence[Event]:
    """The event of a stream; none of a kind that a newer server sends."""
    kind = message.WhichOneof("event")
    if kind == "delta":  # on the path of every token
        delta = message.delta
        calls = (ToolCallDelta(one.index, one.arguments, one.id, one.name) for one in delta.tool_calls)
        return (Delta(delta.text, delta.tokens, tuple(map(logprob_of, delta.logprobs)), tuple(calls)),)
    return (read(EVENTS[kind], getattr(message, kind)),) if kind in EVENTS else ()


def to_adapter(message: adapters_pb2.Adapter) -> Adapter:
    """One adapter version."""
    override = None
    if message.HasField("override"):
        override = read(Override, message.override, version=message.version)
    return read(Adapter, message, override=override)


def adapter_of(message: adapters_pb2.GetAdapterResponse | adapters_pb2.LoadAdapterResponse) -> Adapter:
    """The adapter of an answer."""
    return to_adapter(message.adapter)


def to_unloaded(message: adapters_pb2.UnloadAdapterResponse) -> Unloaded:
    """What unloading freed."""
    return Unloaded(to_adapter(message.adapter), message.freed_bytes)


def to_default_change(
    message: adapters_pb2.SetDefaultVersionResponse | adapters_pb2.ResetDefaultVersionResponse,
) -> DefaultChange:
    """The new default and the old one."""
    return read(DefaultChange, message, adapter=to_adapter(message.adapter))


def to_adapter_event(message: adapters_pb2.WatchAdaptersResponse) -> AdapterEvent:
    """A lifecycle event."""
    return read(AdapterEvent, message, adapter=to_adapter(message.adapter))


def to_feedback(message: feedback_pb2.Feedback) -> Feedback:
    """One entry."""
    name, version = split_adapter(message.adapter) or (message.adapter, "")
    verdict = feedback_pb2.FeedbackVerdict.Name(message.verdict).removeprefix("FEEDBACK_VERDICT_").lower()
    raw = message.input.WhichOneof("input") == "raw_prompt"
    turns = ((_ROLE_NAMES.get(turn.role, "user"), turn.text) for turn in message.input.chat.messages)
    return read(
        Feedback,
        message,
        adapter=name,
        version=version,
        verdict=next((one for one in VERDICTS if one == verdict), "bad"),
        messages=((RAW, message.input.raw_prompt),) if raw else tuple(turns),
    )
