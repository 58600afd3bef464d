"""Answers and events checked against the types of OpenAI's own client: every field that these demand is there
and of its type, and nothing else but the fields that docs/http.md adds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from openai.types import Completion, CompletionChoice, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai.types.shared import ErrorObject
from pydantic import BaseModel

OURS: Mapping[type[BaseModel], set[str]] = {
    ChatCompletion: {"routing"},
    ChatCompletionChunk: {"routing"},
    Completion: {"routing"},
    CompletionChoice: {"routing"},
    Model: {"description"},
    Response: {"routing", "store"},
    ErrorObject: {"reason"},
}
KINDS: Mapping[str, type[BaseModel]] = {
    "chat.completion": ChatCompletion,
    "chat.completion.chunk": ChatCompletionChunk,
    "text_completion": Completion,
    "model": Model,
    "response": Response,
}


def validated(body: Any) -> Any:
    """The same body. Fails where it is not as the client's types say."""
    if "object" not in body:
        _check(ErrorObject, body["error"])
    elif body["object"] == "list":
        for entry in body["data"]:
            validated(entry)
    else:
        _check(KINDS[body["object"]], body)
    return body


def validated_events(text: str) -> list[Any]:
    """The events of a stream, each checked; the mark of its end, if it has one, is left out."""
    *events, rest = text.split("\n\n")
    assert not rest
    assert all(event.startswith("data: ") for event in events)
    read = [event.removeprefix("data: ") for event in events]
    chunks = [json.loads(event) for event in (read[:-1] if read[-1] == "[DONE]" else read)]
    for chunk in chunks:
        if chunk.get("object") == "text_completion":  # the client has one type for these and whole answers
            shown = [one | {"finish_reason": one["finish_reason"] or "stop"} for one in chunk["choices"]]
            validated(chunk | {"choices": shown})
        else:
            validated(chunk)
    return chunks


def _check(kind: type[BaseModel], body: Any) -> None:
    made = kind.model_validate(body, strict=True)
    assert set(made.model_extra or ()) <= OURS.get(kind, set()), made.model_extra
    for inner in _models_in(made):
        assert set(inner.model_extra or ()) <= OURS.get(type(inner), set()), (type(inner), inner.model_extra)


def _models_in(value: Any) -> Iterator[BaseModel]:
    values = vars(value).values() if isinstance(value, BaseModel) else value
    for inner in values if isinstance(values, list | tuple) or isinstance(value, BaseModel) else ():
        if isinstance(inner, BaseModel):
            yield inner
        if isinstance(inner, BaseModel | list | tuple):
            yield from _models_in(inner)
