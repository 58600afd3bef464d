"""Answers as `Response` objects of OpenAI's API, whole and as the events of a stream.

Source: https://platform.openai.com/docs/api-reference/responses/object and .../responses-streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.extensions.openai import answers
from router.extensions.openai.logprobs import chat_logprobs
from router.extensions.openai.responses import OF_FUNCTION, ResponseBody, TextFormat
from router.names import model_of
from router.v1 import inference_pb2 as pb

COMPLETED, INCOMPLETE, IN_PROGRESS = "completed", "incomplete", "in_progress"
Event = tuple[str, dict[str, Any]]  # its name behind `response.`, and its fields


@dataclass(slots=True)
class MessageItem:
    """A message: one part of text."""

    id: str
    place: int
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def json(self, status: str) -> dict[str, Any]:
        """As OpenAI's API has it."""
        content = [] if status == IN_PROGRESS else [part(self.text, self.logprobs)]
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def begun(self) -> Sequence[Event]:
        """The item, and its part."""
        added = {"output_index": self.place, "item": self.json(IN_PROGRESS)}
        return ("output_item.added", added), self._of_part("content_part.added", part=part("", []))

    def more(self, text: str, logprobs: list[dict[str, Any]]) -> Event:
        """More of the text."""
        self.text += text
        self.logprobs += logprobs
        return self._of_part("output_text.delta", delta=text, logprobs=logprobs)

    def ended(self, status: str) -> Sequence[Event]:
        """The text, its part, and the item."""
        return (
            self._of_part("output_text.done", text=self.text, logprobs=self.logprobs),
            self._of_part("content_part.done", part=part(self.text, self.logprobs)),
            ("output_item.done", {"output_index": self.place, "item": self.json(status)}),
        )

    def _of_part(self, name: str, **fields: Any) -> Event:
        return name, {"item_id": self.id, "output_index": self.place, "content_index": 0, **fields}


def part(text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


@dataclass(slots=True)
class CallItem:
    """A call of a function, whose result the caller sends back under `call_id`."""

    id: str
    place: int
    call_id: str
    name: str
    arguments: str = ""

    def json(self, status: str) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }

    def begun(self) -> Sequence[Event]:
        """The item, without arguments."""
        return (("output_item.added", {"output_index": self.place, "item": self.json(IN_PROGRESS)}),)

    def more(self, arguments: str) -> Event:
        """More of the arguments."""
        self.arguments += arguments
        return self._of_call("delta", delta=arguments)

    def ended(self, status: str) -> Sequence[Event]:
        """The arguments, and the item."""
        return (
            self._of_call("done", name=self.name, arguments=self.arguments),
            ("output_item.done", {"output_index": self.place, "item": self.json(status)}),
        )

    def _of_call(self, end: str, **fields: Any) -> Event:
        place = {"item_id": self.id, "output_index": self.place}
        return f"function_call_arguments.{end}", place | fields


# -- The response


FAILED = "failed"
STATUS = {
    pb.FINISH_REASON_STOP: COMPLETED,
    pb.FINISH_REASON_TOOL_CALLS: COMPLETED,
    pb.FINISH_REASON_LENGTH: INCOMPLETE,
}
OVERLOADED = (429, 503)  # statuses


class ResponseWriter:
    """Writes the answer to one request."""

    def __init__(self, asked: ResponseBody) -> None:
        self._asked, self._head = asked, dict[str, Any]()
        self._id, self._number = "", 0  # number: of the next event
        self._items = list[MessageItem | CallItem]()  # of these the last may grow

    def whole(self, answer: pb.GenerateResponse) -> bytes:
        """The answer in one piece."""
        self._begin(answer.response_id, answer.decision)
        if answer.text or not answer.tool_calls:
            message = self._message()
            message.text, message.logprobs = answer.text, self._shown(answer.logprobs)
        for call in answer.tool_calls:
            self._call(call.id, call.name).arguments = call.arguments
        return json.dumps(self._ended(STATUS[answer.finish_reason], answer.usage)).encode()

    def event(self, event: pb.StreamGenerateResponse) -> bytes:
        """The events of a stream that an event of ours makes."""
        return b"".join(self._written(name, body) for name, body in self._events(event))

    def failure(self, status: int, reason: str, message: str, field: str) -> bytes:
        """The last event of a stream that ends with an error."""
        code = "rate_limit_exceeded" if status in OVERLOADED else "server_error"
        shown = {"code": code, "message": message}
        response = self._response(FAILED) | {"error": shown, "output": self._output(INCOMPLETE)}
        return self._written(FAILED, {"response": response})

    # -- The items, and their events

    def _events(self, event: pb.StreamGenerateResponse) -> Iterator[Event]:
        if event.HasField("started"):
            self._begin(event.started.response_id, event.started.decision)
            response = self._response(IN_PROGRESS)
            yield "created", {"response": response}
            yield "in_progress", {"response": response}
        elif event.HasField("delta"):
            yield from self._delta(event.delta)
        else:
            status = STATUS[event.finished.reason]
            if not self._items:
                yield from self._message().begun()
            yield from self._items[-1].ended(status)
            yield status, {"response": self._ended(status, event.finished.usage)}

    def _delta(self, delta: pb.Delta) -> Iterator[Event]:
        if delta.text:
            message = self._items[-1] if self._items else None
            if not isinstance(message, MessageItem):
                message = self._message()
                yield from self._next(message)
            yield message.more(delta.text, self._shown(delta.logprobs))
        for piece in delta.tool_calls:
            if piece.id:
                yield from self._next(self._call(piece.id, piece.name))
            call = self._items[-1]
            if piece.arguments and isinstance(call, CallItem):
                yield call.more(piece.arguments)

    def _next(self, item: MessageItem | CallItem) -> Iterator[Event]:
        """The end of the item before the last, which is `item`, and the beginning of that."""
        if item.place:
            yield from self._items[item.place - 1].ended(COMPLETED)
        yield from item.begun()

    def _message(self) -> MessageItem:
        message = MessageItem(self._item_id("msg"), len(self._items))
        self._items.append(message)
        return message

    def _call(self, call_id: str, name: str) -> CallItem:
        call = CallItem(self._item_id("fc"), len(self._items), call_id, name)
        self._items.append(call)
        return call

    def _item_id(self, kind: str) -> str:
        place = f"_{len(self._items)}" if self._items else ""
        return f"{kind}_{self._id}{place}"

    def _output(self, status: str) -> list[dict[str, Any]]:
        """All items; the last has that status."""
        last = len(self._items) - 1
        return [item.json(status if item.place == last else COMPLETED) for item in self._items]

    def _shown(self, logprobs: Iterable[pb.TokenLogprob]) -> list[dict[str, Any]]:
        if not self._asked.logprobs:
            return []
        shown: list[dict[str, Any]] = chat_logprobs(logprobs, self._asked.top_logprobs or 0)["content"]
        return shown

    def _written(self, name: str, body: dict[str, Any]) -> bytes:
        kind = f"response.{name}"
        numbered = {"type": kind, "sequence_number": self._number} | body
        self._number += 1
        return f"event: {kind}\n".encode() + answers.sse(numbered)

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
            "tools": [{"type": "function"} | function_json(tool) for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "routing": answers.decision_json(decision),
        }

    def _response(self, status: str) -> dict[str, Any]:
        return self._head | {"status": status}

    def _ended(self, status: str, usage: pb.Usage) -> dict[str, Any]:
        more: dict[str, Any] = {"output": self._output(status), "usage": usage_json(usage)}
        if status == INCOMPLETE:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            more["completed_at"] = int(time.time())
        return self._response(status) | more


def function_json(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function that was offered, as answers show it."""
    return {name: tool.get(name) for name in OF_FUNCTION}


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
