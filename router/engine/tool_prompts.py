"""Functions and their calls in prompts: what a chat template gets, and text where it has no form for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router.types import Tool, ToolCall, Tools, Turn

# Stands for a text while the template renders. The unit separators count as white space, so where the
# template strips its contents they are gone afterwards, and the text is stripped too. JSON escapes them.
_MARK = "\x1fROUTER-TEXT-{}-END\x1f"
MARKED = re.compile(r"(\\u001f|\\x1f|\x1f?)ROUTER-TEXT-([0-9]+)-END(\\u001f|\\x1f|\x1f?)")
_PLAIN = re.compile(r"[A-Za-z0-9_ -]*")


@dataclass(slots=True)
class Marks:
    """Texts that a template must not see, each with the mark that stands for it.

    `controls` says whether a text names a control token: what else is plain stays in its place, since
    templates compare such texts.
    """

    controls: Callable[[str], bool]
    texts: list[str]  # the first ones are those of the turns
    _known: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        """The mark of a text; the same text may have several."""
        self.texts.append(text)
        return _MARK.format(len(self.texts) - 1)

    def value(self, value: Any) -> Any:
        """A JSON value with marks instead of texts, keys included."""
        if isinstance(value, str):
            return self._safe(value)
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {self._safe(key): self.value(one) for key, one in value.items()}
        return value

    def _safe(self, text: str) -> str:
        if _PLAIN.fullmatch(text) and not self.controls(text):
            return text
        if text not in self._known:
            self._known[text] = self.mark(text)
        return self._known[text]

    def restored(self, found: re.Match[str]) -> str:
        """The text that a mark in a rendered prompt stands for, escaped or stripped as the mark was."""
        text = self.texts[int(found[2])]
        if found[1] == r"\u001f":
            return json.dumps(text, ensure_ascii=False)[1:-1]
        text = text if found[1] else text.lstrip()
        return text if found[3] else text.rstrip()


def function_value(tool: Tool) -> dict[str, Any]:
    """A function as chat templates expect it."""
    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def message_of(turn: Turn, number: int, marks: Marks, names: dict[str, str], as_text: bool) -> dict[str, Any]:
    """Turn `number` as chat templates expect it. `as_text`: arguments are JSON, not an object.

    `names` maps ids to those that the prompt has, since some templates expect nine letters.
    """
    message: dict[str, Any] = {"role": turn.role, "content": _MARK.format(number) if turn.text else ""}
    if turn.calls:
        message["tool_calls"] = [_call_value(call, marks, names, as_text) for call in turn.calls]
    if turn.role == "tool":
        message["tool_call_id"] = _id(turn.call_id, names)
        message["name"] = marks.value(turn.function)
    return message


def _call_value(call: ToolCall, marks: Marks, names: dict[str, str], as_text: bool) -> dict[str, Any]:
    arguments = marks.mark(call.arguments) if as_text else marks.value(json.loads(call.arguments))
    function = {"name": marks.value(call.name), "arguments": arguments}
    return {"id": _id(call.id, names), "type": "function", "function": function}


def _id(name: str, names: dict[str, str]) -> str:
    return names.setdefault(name, f"call{len(names):05d}")


def named(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, those of functions with the names of the calls that they answer."""
    names: dict[str, str] = {}
    result = []
    for turn in turns:
        names.update((call.id, call.name) for call in turn.calls)
        if turn.role == "tool" and not turn.function:
            turn = replace(turn, function=names.get(turn.call_id, ""))
        result.append(turn)
    return result


def calls_as_text(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of users and assistants alone: what functions returned stands before the question.

    Calls are left out, since a model that sees them as texts of its own answers with another one.
    """
    result: list[Turn] = []
    returned: dict[int, list[str]] = {}  # texts, by the place of the question
    calls: dict[str, ToolCall] = {}
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        calls.update((call.id, call) for call in turn.calls)
        if turn.role == "tool":
            if not result or result[-1].role != "user":
                result.append(Turn("user", ""))
            returned.setdefault(len(result) - 1, []).append(_result_text(turn, calls.get(turn.call_id)))
        elif not turn.calls:
            if turn.role == "user" and result and result[-1] == Turn("user", ""):
                result.pop()  # results are there, and their question comes now
            result.append(turn)
        elif turn.text or after is None or after.role != "tool":
            result.append(Turn("assistant", turn.text or "\n".join(map(_call_text, turn.calls))))
    for place, texts in returned.items():
        result[place] = Turn("user", "\n".join(texts) + f"\n\n{result[place].text}".rstrip("\n"))
    return result


def _result_text(turn: Turn, call: ToolCall | None) -> str:
    name = turn.function or (call.name if call is not None else "a function")
    return f"Result of {name}{f' {call.arguments}' if call is not None else ''}: {turn.text}"


def _call_text(call: ToolCall) -> str:
    return f'{{"name": "{call.name}", "arguments": {call.arguments}}}'


def with_functions(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    """The turns of a request that has to be answered with a call; the last user turn has the functions."""
    result = list(turns)
    listed = "\n".join(json.dumps(function_value(tool), ensure_ascii=False) for tool in tools.callable)
    text = f"Functions:\n{listed}\n\nAnswer this request with a call of one of these functions, as JSON"
    last = max((i for i, turn in enumerate(result) if turn.role == "user"), default=None)
    if last is None:
        return [*result, Turn("user", f"{text}.")]
    result[last] = replace(result[last], text=f"{text}: {result[last].text}")
    return result
