"""Errors in the words of OpenAI's API: fields as the client's body has them, and models by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from router.errors import AdapterNotFound, FieldViolation, InvalidRequest, PromptTooLong
from router.extensions.openai import tools
from router.extensions.openai.requests import (
    ChatCompletion,
    CompletionBody,
    leading_system,
    shapes,
    units,
)
from router.names import ADAPTER_FORM, model_name
from router.server import http
from router.types import CONSTRAINT_KINDS

MODEL_FORM = "NAME, NAME@VERSION, auto or base"
NUMBERED = re.compile(r"inputs\[(\d+)\]")
MESSAGE = re.compile(r"input\.chat\.messages\[(\d+)\](?:\.(.+))?")


def error_json(status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return http.error_json(status, reason, message, "model" if reason == AdapterNotFound.reason else field)


def model_not_found(name: str, hint: str = "") -> AdapterNotFound:
    """The error for a model that the client does not see."""
    error = AdapterNotFound(name)
    error.message = f"model {name!r} not found{hint}; a model is {MODEL_FORM}"
    return error


@contextmanager
def in_their_words(completion: CompletionBody, unit: str) -> Iterator[None]:
    """Errors of the block name the fields of that body. `unit` is the header that says who is served."""
    try:
        yield
    except InvalidRequest as error:
        raise Words(completion, unit).error(error) from None
    except AdapterNotFound as error:
        raise model_not_found(model_name(error.name), error.hint) from None


class Words:
    """Names that one body has for the fields of our messages."""

    def __init__(self, completion: CompletionBody, unit: str) -> None:
        self._completion, self._unit = completion, unit
        self._chat = isinstance(completion, ChatCompletion)
        sent = isinstance(completion, ChatCompletion) and completion.max_completion_tokens is not None
        self._max_tokens = "max_completion_tokens" if sent else "max_tokens"

    def error(self, error: InvalidRequest) -> InvalidRequest:
        """The same error in the client's words."""
        if isinstance(error, PromptTooLong):
            finding = self._too_long(error, error.violations[0].field)
            return error.reworded(lambda _: finding)
        return error.reworded(self._finding)

    def _finding(self, violation: FieldViolation) -> FieldViolation:
        field, description = violation.field, violation.description
        description = description.replace(ADAPTER_FORM, "NAME or NAME@VERSION")
        if field == "routing.adapter":
            _, _, folder = description.partition("; ")
            folder = folder.replace("adapters/", "")
            return FieldViolation("model", f"must be {MODEL_FORM}" + (f"; {folder}" if folder else ""))
        if field == "sampling.min_tokens":
            description = description.replace("max_tokens", self._max_tokens)
        return FieldViolation(self._field(field), description)

    def _too_long(self, error: PromptTooLong, field: str) -> FieldViolation:
        """Some clients know the error by its first words."""
        prompt, needs = self._field(field), f"at least {error.got}" if error.at_least else str(error.got)
        text = f"this model's maximum context length is {error.limit} tokens"
        return FieldViolation(prompt, f"{text}; {prompt} and {self._max_tokens} need {needs}")

    def _field(self, field: str) -> str:
        field = tools.in_their_words(field)
        if (message := MESSAGE.fullmatch(field)) is not None:
            return self._message(int(message[1]), message[2] or "")
        if (numbered := NUMBERED.match(field)) is not None:
            return f"prompt[{numbered[1]}]"
        if field.startswith("input"):
            return "messages" if self._chat else "prompt"
        if field == "routing.unit":
            given = units(self._completion, self._unit)
            return next((name for name, value in given.items() if value), field)
        if field.startswith("sampling."):
            return self._sampling(field.removeprefix("sampling."))
        return "metadata" + field.removeprefix("labels") if field.startswith("labels") else field

    def _sampling(self, field: str) -> str:
        if field == "max_tokens":
            return self._max_tokens
        if field == "logprobs" and self._chat:
            return "top_logprobs"
        kind, _, place = field.partition("[")
        if kind in CONSTRAINT_KINDS or kind == "choices.values":
            path = next((shape.path for shape in shapes(self._completion)), kind)
            return f"{path}[{place}" if place else path
        return field

    def _message(self, index: int, name: str) -> str:
        """The leading system texts are one message of ours."""
        leading = leading_system(self._completion) if isinstance(self._completion, ChatCompletion) else 0
        place = index + leading - 1 if leading and index else index
        name = "content" if name == "text" else name
        return f"messages[{place}].{name}" if name else f"messages[{place}]"
