"""Answers as `Response` objects of OpenAI's API, whole and as the events of a stream.

Source: https://platform.openai.com/docs/api-reference/responses/object and .../responses-streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.extensions.openai import answers
from router.extensions.openai.responses import ResponseBody, TextFormat, error_json
from router.names import model_of
from router.v1 import inference_pb2 as pb

COMPLETED, INCOMPLETE, IN_PROGRESS, FAILED = "completed", "incomplete", "in_progress", "failed"
STATUS = {pb.FINISH_REASON_STOP: COMPLETED, pb.FINISH_REASON_LENGTH: INCOMPLETE}
OVERLOADED = (429, 503)  # statuses


class ResponseWriter:
    """Writes the answer to one request."""

    def __init__(self, asked: ResponseBody) -> None:
        self._asked, self._head = asked, dict[str, Any]()
        self._id, self._number = "", 0  # number: of the next event
        self._text = list[str]()
        self._logprobs = list[dict[str, Any]]()
        self._message = False  # whether the message was begun

    def whole(self, answer: pb.GenerateResponse) -> bytes:
        """The answer in one piece."""
        self._begin(answer.response_id, answer.decision)
        status = STATUS[answer.finish_reason]
        part = self._part(answer.text, self._shown(answer.logprobs))
        return json.dumps(self._ended(status, [self._item(status, [part])], answer.usage)).encode()

    def event(self, event: pb.StreamGenerateResponse) -> bytes:
        """The events of a stream that an event of ours makes."""
        if event.HasField("started"):
            self._begin(event.started.response_id, event.started.decision)
            response = self._response(IN_PROGRESS)
            events = [("created", {"response": response}), ("in_progress", {"response": response})]
            return b"".join(self._event(name, body) for name, body in events)
        if event.HasField("delta"):
            return self._begun() + self._delta(event.delta)
        return self._begun() + self._end(STATUS[event.finished.reason], event.finished.usage)

    def failure(self, status: int, reason: str, message: str, field: str) -> bytes:
        """The last event of a stream that ends with an error."""
        error = error_json(status, reason, message, field)["error"]
        code = "rate_limit_exceeded" if status in OVERLOADED else "server_error"
        shown = {"code": code, "message": error["message"]}
        items = [self._item(INCOMPLETE, [self._part("".join(self._text), self._logprobs)])]
        response = self._response(FAILED) | {"error": shown, "output": items if self._text else []}
        return self._event(FAILED, {"response": response})

    # -- The response

    def _begin(self, response_id: str, decision: pb.Decision) -> None:
        self._id = response_id
        asked = self._asked
        self._head = {
            "id": f"resp_{response_id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": IN_PROGRESS,
            "completed_at": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "model": model_of(decision),
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": format_json(asked.text.format)},
            "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
            "tools": [{"parameters": None, "strict": None} | tool for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "routing": answers.decision_json(decision),
        }

    def _response(self, status: str) -> dict[str, Any]:
        return self._head | {"status": status}

    def _ended(self, status: str, output: Sequence[Mapping[str, Any]], usage: pb.Usage) -> dict[str, Any]:
        more: dict[str, Any] = {"output": output, "usage": usage_json(usage)}
        if status == INCOMPLETE:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            more["completed_at"] = int(time.time())
        return self._response(status) | more

    # -- The message in it

    def _item(self, status: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    @property
    def _item_id(self) -> str:
        return f"msg_{self._id}"

    def _part(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _shown(self, logprobs: Iterable[pb.TokenLogprob]) -> list[dict[str, Any]]:
        if not self._asked.logprobs:
            return []
        shown: list[dict[str, Any]] = answers.chat_logprobs(logprobs, self._asked.top_logprobs or 0)[
            "content"
        ]
        return shown

    # -- Events

    def _event(self, name: str, body: dict[str, Any]) -> bytes:
        kind = f"response.{name}"
        numbered = {"type": kind, "sequence_number": self._number} | body
        self._number += 1
        return f"event: {kind}\n".encode() + answers.sse(numbered)

    def _of_item(self, name: str, body: dict[str, Any]) -> bytes:
        return self._event(name, {"output_index": 0} | body)

    def _of_part(self, name: str, body: dict[str, Any]) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(name, place | body)

    def _begun(self) -> bytes:
        """The beginning of the message, once."""
        if self._message:
            return b""
        self._message = True
        added = self._of_item("output_item.added", {"item": self._item(IN_PROGRESS, [])})
        return added + self._of_part("content_part.added", {"part": self._part("", [])})

    def _delta(self, delta: pb.Delta) -> bytes:
        logprobs = self._shown(delta.logprobs)
        self._text.append(delta.text)
        self._logprobs += logprobs
        return self._of_part("output_text.delta", {"delta": delta.text, "logprobs": logprobs})

    def _end(self, status: str, usage: pb.Usage) -> bytes:
        text = "".join(self._text)
        part = self._part(text, self._logprobs)
        item = self._item(status, [part])
        return b"".join(
            (
                self._of_part("output_text.done", {"text": text, "logprobs": self._logprobs}),
                self._of_part("content_part.done", {"part": part}),
                self._of_item("output_item.done", {"item": item}),
                self._event(status, {"response": self._ended(status, [item], usage)}),
            )
        )


def format_json(form: TextFormat | None) -> dict[str, Any]:
    """The format that was requested, as answers show it."""
    if form is None:
        return {"type": "text"}
    return {"type": form.type} if form.type != "json_schema" else form.model_dump(by_alias=True)


def usage_json(usage: pb.Usage) -> dict[str, Any]:
    """Tokens."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
