"""Python arguments into proto messages."""

from __future__ import annotations

from router.client.options import ROUTING, SAMPLING, GenerateOptions, Prompt, RouteOptions, check_known
from router.types import Turn
from router.v1 import inference_pb2 as pb

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}


def resource_name(adapter: str) -> str:
    """NAME, NAME@VERSION or a resource name, as a resource name; empty stays empty."""
    if not adapter or adapter.startswith("adapters/"):
        return adapter
    name, _, version = adapter.partition("@")
    return f"adapters/{name}/versions/{version}" if version else f"adapters/{name}"


def _chat(turns: tuple[Turn, ...]) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=ROLES[t.role], text=t.text) for t in turns])


def build_input(prompt: Prompt, options: RouteOptions) -> pb.Input:
    """Text, chat or raw prompt. `system` turns a text into a chat; it cannot go with `raw`."""
    system, raw = options.get("system", ""), options.get("raw", False)
    if raw:
        if system or not isinstance(prompt, str):
            raise TypeError("raw continues one text as it is: no system text, no turns")
        return pb.Input(raw_prompt=prompt)
    if isinstance(prompt, str) and not system:
        return pb.Input(text=prompt)
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return pb.Input(chat=_chat((Turn("system", system), *turns) if system else turns))


def build_routing(options: RouteOptions) -> pb.Routing:
    """The caller's hints."""
    said = {name: options[name] for name in ROUTING if name in options}  # type: ignore[literal-required]
    return pb.Routing(adapter=resource_name(options.get("adapter", "")), **said)


def _sampling(options: GenerateOptions) -> pb.Sampling:
    said = {name: options[name] for name in SAMPLING if name in options}  # type: ignore[literal-required]
    if isinstance(said.get("stop"), str):
        said["stop"] = [said["stop"]]
    return pb.Sampling(**said)


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """The unary request; TypeError for an unknown option."""
    check_known(options, GenerateOptions)
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
