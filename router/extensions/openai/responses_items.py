"""Items of a response: a message and calls of functions, each with the events that it makes in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
