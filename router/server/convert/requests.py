"""Proto requests to `types.Request`; every bad field is named in one InvalidRequest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.errors import Findings
from router.judging import REFERENCE
from router.names import ADAPTER_FORM, BASE, split_adapter
from router.server.convert.sampling import sampling_of
from router.types import Request, Role, RoutingHints, Turn
from router.v1 import inference_pb2 as pb

MAX_MESSAGES, MAX_LABELS, MAX_LABEL_BYTES, MAX_HINT_BYTES, MAX_UNIT_BYTES = 256, 16, 64, 64, 256
MAX_REFERENCE_BYTES = 4096
ROLES: Mapping[int, Role] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts at most."""

    max_prompt_bytes: int
    max_tokens: int


def generate_request(
    message: pb.GenerateRequest | pb.StreamGenerateRequest, response_id: str, limits: Limits
) -> Request:
    """A request for an answer, which will have that id."""
    found = Findings()
    request = _input(message.input, response_id, limits, found)
    request = replace(
        request,
        sampling=sampling_of(message.sampling, limits.max_tokens, found),
        routing=_hints(message.routing, found),
        labels=_labels(message.labels, found),
    )
    found.check()
    return request


def route_request(
    message: pb.RouteRequest | pb.CountTokensRequest, response_id: str, limits: Limits
) -> Request:
    """A request for a decision or a count."""
    found = Findings()
    request = replace(
        _input(message.input, response_id, limits, found), routing=_hints(message.routing, found)
    )
    found.check()
    return request


def _input(message: pb.Input, response_id: str, limits: Limits, found: Findings) -> Request:
    kind = message.WhichOneof("input")
    if kind is None:
        found.add("input", "one of text, chat and raw_prompt must be set")
        return Request(response_id)
    if kind == "chat":
        return Request(response_id, turns=_turns(message.chat, limits, found))
    text: str = getattr(message, kind)
    if not text.strip():
        found.add(f"input.{kind}", "must not be empty")
    found.text(f"input.{kind}", text, limits.max_prompt_bytes)
    if kind == "raw_prompt":
        return Request(response_id, raw_prompt=text)
    return Request(response_id, turns=(Turn("user", text),))


def _turns(chat: pb.Chat, limits: Limits, found: Findings) -> tuple[Turn, ...]:
    count = len(chat.messages)
    if not 1 <= count <= MAX_MESSAGES:
        found.add("input.chat.messages", f"must have 1 to {MAX_MESSAGES} entries, got {count}")
        return ()
    turns = tuple(_turn(message, i, found) for i, message in enumerate(chat.messages))
    if turns[-1].role != "user":
        found.add(f"input.chat.messages[{count - 1}].role", "the last message must be the user's")
    if sum(len(turn.text.encode()) for turn in turns) > limits.max_prompt_bytes:
        found.add(
            "input.chat.messages", f"must have at most {limits.max_prompt_bytes} bytes of text together"
        )
    return turns


def _turn(message: pb.ChatMessage, index: int, found: Findings) -> Turn:
    field = f"input.chat.messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        found.add(f"{field}.role", "must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT")
    if role == "system" and index > 0:
        found.add(f"{field}.role", "ROLE_SYSTEM is allowed only for the first message")
    if not message.text.strip():
        found.add(f"{field}.text", "must not be empty")
    return Turn(role or "user", message.text)


def _hints(message: pb.Routing, found: Findings) -> RoutingHints:
    if message.adapter not in ("", BASE) and split_adapter(message.adapter) is None:
        found.add("routing.adapter", f"must be {ADAPTER_FORM}")
    return RoutingHints(
        adapter=message.adapter,
        domain=found.text("routing.domain", message.domain, MAX_HINT_BYTES),
        task=found.text("routing.task", message.task, MAX_HINT_BYTES),
        unit=found.text("routing.unit", message.unit, MAX_UNIT_BYTES),
        explain=message.explain,
    )


def _labels(labels: Mapping[str, str], found: Findings) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        found.add("labels", f"must have at most {MAX_LABELS} entries, got {len(labels)}")
        return {}
    for key, value in labels.items():
        found.text("labels", key, MAX_LABEL_BYTES)
        most = MAX_REFERENCE_BYTES if key == REFERENCE else MAX_LABEL_BYTES
        found.text(f"labels[{key[:MAX_LABEL_BYTES]}]", value, most)
        if not key:
            found.add("labels", "keys must not be empty")
    return dict(labels)
