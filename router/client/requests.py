"""Python arguments into proto messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from router.client.options import ROUTING, SAMPLING, GenerateOptions, Prompt, RouteOptions, check_known
from router.types import Turn
from router.v1 import inference_pb2 as pb

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}


def resource_name(adapter: str) -> str:
    """NAME, NAME@VERSION or a resource name, as a resource name; empty stays empty, `base` is the base's."""
    if not adapter or adapter.startswith("adapters/"):
        return adapter
    name, _, version = adapter.partition("@")
    return f"adapters/{name}/versions/{version}" if version else f"adapters/{name}"


def _chat(turns: tuple[Turn, ...]) -> pb.Chat:
    return pb.Chat(messages=[_message(turn, number) for number, turn in enumerate(turns, 1)])


def _message(turn: Turn, number: int) -> pb.ChatMessage:
    role = ROLES.get(turn.role)
    if role is None:
        known = "system, user or assistant"
        raise ValueError(f"turn {number}: role {turn.role!r} is not known to the server: use {known}")
    return pb.ChatMessage(role=role, text=whole(turn.text, f"turn {number}"))


def whole(text: str, where: str) -> str:
    """The text. Raises ValueError for one that UTF-8, and so gRPC, cannot hold."""
    half = re.search("[\ud800-\udfff]", text)
    if half is None:
        return text
    code = f"U+{ord(half[0]):04X} at {half.start()}"
    raise ValueError(
        f"{where}: holds half a character, the lone surrogate {code}: read the text anew as UTF-8, "
        "or replace it: text.encode('utf-8', errors='replace').decode()"
    )


def _checked(value: Any, where: str) -> None:
    """Looks at every text in an option."""
    if isinstance(value, str):
        whole(value, where)
    elif isinstance(value, Mapping):
        for item in (*value.keys(), *value.values()):
            _checked(item, where)
    elif isinstance(value, Iterable):
        for item in value:
            _checked(item, where)


def build_input(prompt: Prompt, options: RouteOptions) -> pb.Input:
    """Text, chat or raw prompt. `system` turns a text into a chat; it cannot go with `raw`."""
    system, raw = options.get("system", ""), options.get("raw", False)
    if raw:
        if system or not isinstance(prompt, str):
            raise TypeError("raw continues one text as it is: no system text, no turns")
        return pb.Input(raw_prompt=whole(prompt, "prompt"))
    if isinstance(prompt, str) and not system:
        return pb.Input(text=whole(prompt, "prompt"))
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return pb.Input(chat=_chat((Turn("system", system), *turns) if system else turns))


def build_routing(options: RouteOptions) -> pb.Routing:
    """The caller's hints."""
    said = {name: options[name] for name in ROUTING if name in options}  # type: ignore[literal-required]
    for name in ("adapter", *said):
        _checked(options.get(name, ""), name)
    return pb.Routing(adapter=resource_name(options.get("adapter", "")), **said)


def _sampling(options: GenerateOptions) -> pb.Sampling:
    said = {name: options[name] for name in SAMPLING if name in options}  # type: ignore[literal-required]
    if isinstance(said.get("stop"), str):
        said["stop"] = [said["stop"]]
    _checked(said.get("stop", ()), "stop")
    return pb.Sampling(**said)


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """The unary request; TypeError for an unknown option."""
    check_known(options, GenerateOptions)
    _checked(options.get("labels", {}), "labels")
    return pb.GenerateRequest(
        input=build_input(prompt, options),
        sampling=_sampling(options),
        routing=build_routing(options),
        labels=dict(options.get("labels", {})),
    )


def stream_request(prompt: Prompt, options: GenerateOptions) -> pb.StreamGenerateRequest:
    """The streaming request: the same fields."""
    whole = generate_request(prompt, options)
    return pb.StreamGenerateRequest(
        input=whole.input, sampling=whole.sampling, routing=whole.routing, labels=whole.labels
    )


def route_request(prompt: Prompt, options: RouteOptions) -> pb.RouteRequest:
    """Where would it go."""
    check_known(options, RouteOptions)
    return pb.RouteRequest(input=build_input(prompt, options), routing=build_routing(options))


def count_request(prompt: Prompt, options: RouteOptions) -> pb.CountTokensRequest:
    """How long is it."""
    check_known(options, RouteOptions)
    return pb.CountTokensRequest(input=build_input(prompt, options), routing=build_routing(options))
