"""Messages of InferenceService as OpenAI's answers, events and errors.

Source: https://platform.openai.com/docs/api-reference (chat, completions, models, streaming).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from router.extensions.openai.requests import ChatCompletion, CompletionBody
from router.names import AUTO, BASE, model_of
from router.types import AdapterInfo, AdapterState
from router.v1 import inference_pb2 as pb

FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
OWNER = "lora-router"


class AnswerWriter:
    """Writes answers to one request."""

    def __init__(self, completion: CompletionBody) -> None:
        self._chat = isinstance(completion, ChatCompletion)
        self._kind = "chat.completion" if self._chat else "text_completion"
        self._usage = completion.stream_options is not None and completion.stream_options.include_usage
        self._logprobs = bool(completion.logprobs)
        self._top = (completion.top_logprobs or 0) if isinstance(completion, ChatCompletion) else 0
        self._created = int(time.time())
        self._head: dict[str, Any] = {}

    def whole(self, answer: pb.GenerateResponse) -> bytes:
        """The answer in one piece."""
        self._begin(answer.response_id, answer.decision, self._kind)
        text = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        choice = self._choice(
            text if self._chat else {"text": answer.text}, answer.logprobs, FINISH[answer.finish_reason]
        )
        decided = decision_json(answer.decision)
        body = self._head | {"choices": [choice], "usage": usage_json(answer.usage), "routing": decided}
        return json.dumps(body).encode()

    def event(self, event: pb.StreamGenerateResponse) -> bytes:
        """The same as server-sent events."""
        if event.HasField("started"):
            kind = "chat.completion.chunk" if self._chat else self._kind
            self._begin(event.started.response_id, event.started.decision, kind)
            decided = {"routing": decision_json(event.started.decision)}
            first = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
            return self._chunk([self._choice(first, (), None)], decided)
        if event.HasField("delta"):
            text = event.delta.text
            more = {"delta": {"content": text}} if self._chat else {"text": text}
            return self._chunk([self._choice(more, event.delta.logprobs, None)])
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        data = self._chunk([self._choice(last, (), FINISH[event.finished.reason])])
        if self._usage:
            data += self._chunk([], {"usage": usage_json(event.finished.usage)})
        return data + b"data: [DONE]\n\n"

    def _begin(self, response_id: str, decision: pb.Decision, kind: str) -> None:
        self._head = {
            "id": response_id,
            "object": kind,
            "created": self._created,
            "model": model_of(decision),
        }

    def _chunk(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._usage else {}
        return sse(self._head | {"choices": choices} | usage | dict(more or {}))

    def _choice(
        self, text: Mapping[str, Any], logprobs: Sequence[pb.TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        shown = None
        if self._logprobs and logprobs:
            shown = chat_logprobs(logprobs, self._top) if self._chat else text_logprobs(logprobs)
        return {"index": 0, **text, "logprobs": shown, "finish_reason": finish}


def sse(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def decision_json(decision: pb.Decision) -> dict[str, Any]:
    """What was decided, under the names of the proto."""
    return MessageToDict(
        decision, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )


def usage_json(usage: pb.Usage) -> dict[str, Any]:
    """Tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def chat_logprobs(entries: Iterable[pb.TokenLogprob], top: int) -> dict[str, Any]:
    """As chat completions have them."""

    def entry(one: Any) -> dict[str, Any]:
        return {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode())}

    return {"content": [entry(one) | {"top_logprobs": [entry(t) for t in one.top[:top]]} for one in entries]}


def text_logprobs(entries: Sequence[pb.TokenLogprob]) -> dict[str, Any]:
    """As completions have them."""
    offsets, at = [], 0
    for one in entries:
        offsets.append(at)
        at += len(one.token)
    return {
        "tokens": [one.token for one in entries],
        "token_logprobs": [one.logprob for one in entries],
        "top_logprobs": [{t.token: t.logprob for t in one.top} for one in entries],
        "text_offset": offsets,
    }


def models_json(adapters: Iterable[AdapterInfo]) -> dict[str, Any]:
    """`auto`, the base, every name with a default version, and every version."""
    named = [(AUTO, "the adapter that routing picks"), (BASE, "the base alone")]
    for info in adapters:
        if info.state is not AdapterState.QUARANTINED:
            named += [(info.ref.name, info.description)] if info.default else []
            named.append((f"{info.ref.name}@{info.ref.version}", info.description))
    return {"object": "list", "data": [model_json(name, text) for name, text in named]}


def model_json(name: str, description: str) -> dict[str, Any]:
    """One entry."""
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER, "description": description}
