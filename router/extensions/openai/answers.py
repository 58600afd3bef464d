"""Messages of InferenceService as OpenAI's answers and events.

Source: https://platform.openai.com/docs/api-reference (chat, completions, models, streaming).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from router.extensions.openai.logprobs import TextLogprobs, chat_logprobs
from router.extensions.openai.requests import ChatCompletion, CompletionBody
from router.names import AUTO, BASE, CHAT_ID, COMPLETION_ID, model_of
from router.types import AdapterInfo, AdapterState
from router.v1 import inference_pb2 as pb

FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
OWNER = "lora-router"


class AnswerWriter:
    """Writes answers to one request, whole or as events. `base_digest` is that of the base."""

    def __init__(self, completion: CompletionBody, base_digest: str = "") -> None:
        self._chat = isinstance(completion, ChatCompletion)
        self._usage = completion.stream_options is not None and bool(completion.stream_options.include_usage)
        self._logprobs = bool(completion.logprobs)
        self._top = (completion.top_logprobs or 0) if isinstance(completion, ChatCompletion) else 0
        self._text_logprobs = TextLogprobs()
        self._base_digest = base_digest
        self._created = int(time.time())
        self._head: dict[str, Any] = {}

    def whole(self, answer: pb.GenerateResponse) -> bytes:
        """The answer in one piece."""
        self._begin(
            answer.response_id, answer.decision, "chat.completion" if self._chat else "text_completion"
        )
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
            kind = "chat.completion.chunk" if self._chat else "text_completion"
            self._begin(event.started.response_id, event.started.decision, kind)
            decided = {"routing": decision_json(event.started.decision)}
            delta = {"delta": {"role": "assistant", "content": "", "refusal": None}}
            return self._chunk([self._choice(delta if self._chat else {"text": ""}, (), None)], decided)
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
            "id": (CHAT_ID if self._chat else COMPLETION_ID) + response_id,
            "object": kind,
            "created": self._created,
            "model": model_of(decision),
            "system_fingerprint": fingerprint(self._base_digest, decision.digest),
        }

    def _chunk(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._usage else {}
        return sse(self._head | {"choices": choices} | usage | dict(more or {}))

    def _choice(
        self, text: Mapping[str, Any], logprobs: Sequence[pb.TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        shown = None
        if self._logprobs and logprobs:
            shown = chat_logprobs(logprobs, self._top) if self._chat else self._text_logprobs.of(logprobs)
        return {"index": 0, **text, "logprobs": shown, "finish_reason": finish}


def sse(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def fingerprint(base_digest: str, adapter_digest: str) -> str:
    """Of the weights that answered: another one where those of the base or the adapter change."""
    return "fp_" + hashlib.sha256(f"{base_digest} {adapter_digest}".encode()).hexdigest()[:12]


def decision_json(decision: pb.Decision) -> dict[str, Any]:
    """What was decided, under the names of the proto."""
    return MessageToDict(
        decision, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )


def usage_json(usage: pb.Usage) -> dict[str, Any]:
    """Tokens. Of what this server does not do there are none."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def models_json(adapters: Iterable[AdapterInfo], since: float) -> dict[str, Any]:
    """`auto`, the base, every name with a default version, and every version. `since`: when the server
    started, in unix seconds."""
    named = [(AUTO, "the adapter that routing picks", since), (BASE, "the base alone", since)]
    for info in adapters:
        if info.state is not AdapterState.QUARANTINED:
            named += [(info.ref.name, info.description, info.since)] if info.default else []
            named.append((f"{info.ref.name}@{info.ref.version}", info.description, info.since))
    return {"object": "list", "data": [model_json(*one) for one in named]}


def model_json(name: str, description: str, since: float) -> dict[str, Any]:
    """One entry."""
    return {
        "id": name,
        "object": "model",
        "created": int(since),
        "owned_by": OWNER,
        "description": description,
    }
