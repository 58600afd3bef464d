"""Messages of InferenceService as OpenAI's answers and events.

Source: https://platform.openai.com/docs/api-reference (chat, completions, models, streaming).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from router.extensions.openai import tools
from router.extensions.openai.logprobs import TextLogprobs, chat_logprobs
from router.extensions.openai.requests import ChatCompletion, CompletionBody
from router.names import AUTO, BASE, CHAT_ID, COMPLETION_ID, model_of
from router.types import AdapterInfo, AdapterState
from router.v1 import inference_pb2 as pb

FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
OWNER = "lora-router"


class AnswerWriter:
    """Writes the answers to one request, whole or as events. `base_digest` is that of the base.

    Answers are counted: the first prompt's come first. With several prompts each answer has a `routing` of
    its own.
    """

    def __init__(self, completion: CompletionBody, base_digest: str = "") -> None:
        self._chat = isinstance(completion, ChatCompletion)
        self._n = completion.n or 1
        prompts = 1 if isinstance(completion, ChatCompletion) else len(completion.prompt)
        self._several, self._unfinished = prompts > 1, prompts * self._n
        self._usage = completion.stream_options is not None and bool(completion.stream_options.include_usage)
        self._used: dict[int, pb.Usage] = {}
        self._logprobs = bool(completion.logprobs)
        self._must_call = isinstance(completion, ChatCompletion) and completion.must_call
        self._top = (completion.top_logprobs or 0) if isinstance(completion, ChatCompletion) else 0
        self._text_logprobs: dict[int, TextLogprobs] = defaultdict(TextLogprobs)
        self._base_digest = base_digest
        self._created = int(time.time())
        self._head: dict[str, Any] = {}

    def whole(self, found: Sequence[pb.GenerateResponse]) -> bytes:
        """All answers in one piece."""
        kind = "chat.completion" if self._chat else "text_completion"
        self._begin(found[0].response_id, found[0].decision, kind)
        choices = [self._whole_choice(place, answer) for place, answer in enumerate(found)]
        usage = self._usage_json({place: answer.usage for place, answer in enumerate(found)})
        body = self._head | {"choices": choices, "usage": usage, "routing": decision_json(found[0].decision)}
        return json.dumps(body).encode()

    def event(self, place: int, event: pb.StreamGenerateResponse) -> bytes:
        """The same as server-sent events; `place` is that of the answer."""
        if event.HasField("started"):
            return self._started(place, event.started)
        if event.HasField("delta"):
            text = event.delta.text
            more: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
            if event.delta.tool_calls:
                calls = {"tool_calls": tools.pieces_json(event.delta.tool_calls)}
                more = {"delta": ({"content": text} if text else {}) | calls}
            return self._chunk([self._choice(place, more, event.delta.logprobs, None)])
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        choice = self._choice(place, last, (), FINISH[event.finished.reason])
        data = self._chunk([choice | labels_json(event.finished)])
        self._used[place] = event.finished.usage
        if len(self._used) < self._unfinished:
            return data
        if self._usage:
            data += self._chunk([], {"usage": self._usage_json(self._used)})
        return data + b"data: [DONE]\n\n"

    def _started(self, place: int, started: pb.Started) -> bytes:
        decided = {"routing": decision_json(started.decision)}
        if not self._head:
            kind = "chat.completion.chunk" if self._chat else "text_completion"
            self._begin(started.response_id, started.decision, kind)
        delta = {"delta": {"role": "assistant", "content": None if self._must_call else "", "refusal": None}}
        choice = self._choice(place, delta if self._chat else {"text": ""}, (), None)
        if self._several:
            return self._chunk([choice | decided])
        return self._chunk([choice], {} if place else decided)

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

    def _whole_choice(self, place: int, answer: pb.GenerateResponse) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.tool_calls:
            said |= {"content": answer.text or None, "tool_calls": tools.calls_json(answer.tool_calls)}
        text = {"message": said} if self._chat else {"text": answer.text}
        choice = self._choice(place, text, answer.logprobs, FINISH[answer.finish_reason])
        choice |= labels_json(answer)
        return choice | ({"routing": decision_json(answer.decision)} if self._several else {})

    def _choice(
        self, place: int, text: Mapping[str, Any], logprobs: Sequence[pb.TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        shown = None
        if self._logprobs and logprobs:
            of_text = self._text_logprobs[place]
            shown = chat_logprobs(logprobs, self._top) if self._chat else of_text.of(logprobs)
        return {"index": place, **text, "logprobs": shown, "finish_reason": finish}

    def _usage_json(self, used: Mapping[int, pb.Usage]) -> dict[str, Any]:
        """Of all answers; a prompt counts once."""
        firsts = [usage for place, usage in used.items() if place % self._n == 0]
        return usage_json(
            pb.Usage(
                prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
                cached_tokens=sum(usage.cached_tokens for usage in firsts),
                completion_tokens=sum(usage.completion_tokens for usage in used.values()),
                accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in used.values()),
            )
        )


def labels_json(answer: pb.GenerateResponse | pb.Finished) -> dict[str, Any]:
    """The probabilities of an answer's choices, where it has them."""
    if not answer.labels:
        return {}
    values = [{"text": label.text, "probability": label.probability} for label in answer.labels]
    return {"labels": values, "labels_calibrated": answer.labels_calibrated}


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
            "accepted_prediction_tokens": usage.accepted_draft_tokens,
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
