"""Bodies in JSON: their fields checked, and every bad one named in the words of the client.

A field that its model does not have is ignored where that is harmless, else refused by name. Most are of
OpenAI's API and of vLLM's server. An unknown field is refused with the nearest known name, as OpenAI does.
`docs/reference.md` lists them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from router.errors import FieldViolation, Findings, InvalidRequest
from router.names import MOST_MODEL

UNKNOWN, UNSUPPORTED = "is not a field of this API", "is not supported"
SHOWN = 64  # characters of an unknown name
MOST_HINTS = 8  # nearest names in one error: each takes milliseconds to find
MOST_ERRORS = 2048  # that are built for the sake of the first 32


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that is refused, and why; null and the values in `unless` ask for nothing, and are accepted."""

    why: str
    unless: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What a route does with fields that its model does not have. `ignored`: why that is harmless."""

    ignored: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Refusal] = field(default_factory=dict)

    def known_only(self, body: Mapping[str, Any], known: Iterable[str], found: Findings) -> dict[str, Any]:
        """The fields of `body` that are in `known`; what is wrong with the others is added to `found`."""
        names = frozenset(known)
        kept: dict[str, Any] = {}
        unknown: list[str] = []
        for name, value in body.items():
            refusal = self.refused.get(name)
            if name in names:
                kept[name] = value
            elif refusal is not None:
                if value is not None and value not in refusal.unless:
                    found.add(name, refusal_text(refusal))
            elif name not in self.ignored:
                unknown.append(name)
        everything = (*names, *self.ignored, *self.refused)
        for place, name in enumerate(unknown):
            found.add(name[:SHOWN] or '""', unknown_text(name, everything if place < MOST_HINTS else ()))
        return kept


def refusal_text(refusal: Refusal) -> str:
    """Why a field is refused, and what it may be."""
    allowed = f"; it may be {' or '.join(map(json.dumps, refusal.unless))}" if refusal.unless else ""
    return f"{UNSUPPORTED}: {refusal.why}{allowed}"


def unknown_text(name: str, known: Iterable[str]) -> str:
    """What is wrong with a field of an unknown name, with the nearest known one.

    >>> unknown_text("temprature", ["temperature", "top_p"])
    "is not a field of this API; did you mean 'temperature'?"
    """
    close = difflib.get_close_matches(name[:SHOWN], known, n=1, cutoff=0.6)
    return f"{UNKNOWN}; did you mean {close[0]!r}?" if close else UNKNOWN


MODERATION = Refusal("nothing here moderates")
IGNORED: dict[str, str] = {
    "include_reasoning": "answers have no reasoning apart from the text",
    "prompt_cache_key": "the prefix cache finds common beginnings by itself; it names no conversation, since "
    "applications share one key among their users",
    "prompt_cache_options": "the prefix cache needs none",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "request_id": "send the header x-request-id",
    "service_tier": "there is one tier",
    "spaces_between_special_tokens": "special tokens are not part of the text",
    "store": "no answer is stored for later requests",
}
"""Of both kinds of completion."""
REFUSED: dict[str, Refusal] = {
    "allowed_token_ids": Refusal("use choice, regex or grammar"),
    "bad_words": Refusal("use logit_bias", ([],)),
    "best_of": Refusal("use n", (1,)),
    "cache_salt": Refusal("tenants have caches of their own"),
    "echo": Refusal("the answer is what follows the prompt", (False,)),
    **dict.fromkeys(
        ("guided_choice", "guided_grammar", "guided_json", "guided_regex"), Refusal("use structured_outputs")
    ),
    "include_stop_str_in_output": Refusal("stop strings are no part of the text", (False,)),
    "kv_transfer_params": Refusal("the cache is not transferred"),
    "length_penalty": Refusal("there is no beam search", (1,)),
    "logits_processors": Refusal("requests bring no code"),
    "priority": Refusal("tenants are served in turn", (0,)),
    "prompt_logprobs": Refusal("log-probabilities are those of the answer"),
    "return_token_ids": Refusal("answers have no token ids", (False,)),
    "return_tokens_as_token_ids": Refusal("answers have no token ids", (False,)),
    "skip_special_tokens": Refusal("special tokens are not part of the text", (True,)),
    "stop_token_ids": Refusal("name the text of the token in stop", ([],)),
    "structural_tag": Refusal("use regex or grammar"),
    "truncate_prompt_tokens": Refusal("no prompt is cut"),
    "use_beam_search": Refusal("tokens are sampled", (False,)),
    "vllm_xargs": Refusal("there are no such arguments", ({},)),
}
CHAT = FieldRules(
    IGNORED
    | {
        "prediction": "it changes the time alone",
        "verbosity": "say it in the prompt",
    },
    REFUSED
    | {
        "add_generation_prompt": Refusal("the answer is always the assistant's next turn", (True,)),
        "add_special_tokens": Refusal("the chat template has them", (False,)),
        "audio": Refusal("answers are text"),
        "chat_template": Refusal("the template is that of the base or the adapter"),
        "chat_template_kwargs": Refusal("the template takes none", ({},)),
        "continue_final_message": Refusal("use /v1/completions", (False,)),
        "documents": Refusal("put them into a message", ([],)),
        "mm_processor_kwargs": Refusal("messages are text", ({},)),
        "moderation": MODERATION,
        "reasoning_effort": Refusal("answers have no reasoning apart from the text", ("none", "minimal")),
        "web_search_options": Refusal("nothing is searched for"),
    },
)
COMPLETION = FieldRules(
    IGNORED,
    REFUSED
    | {
        "add_special_tokens": Refusal("the prompt begins as every prompt of the base does", (True,)),
        "suffix": Refusal("the base continues a text, and does not fill one in", ("",)),
    },
)


# -- A body as a model


class JsonModel(BaseModel):
    """A body, or an object in one that may have fields beside those of the model.

    `rules` says what happens to other fields of a body.
    """

    rules: ClassVar[FieldRules] = FieldRules()
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class ClosedModel(JsonModel):
    """An object in a body that has the fields of the model alone."""

    model_config = ConfigDict(extra="forbid")


Read = TypeVar("Read", bound=JsonModel)


def names_of(model: type[BaseModel]) -> list[str]:
    """The names under which a body may have the fields of a model."""
    return [one.alias or name for name, one in model.model_fields.items()]


def parsed(kind: type[Read], body: bytes) -> Read:
    """The request. Raises InvalidRequest naming the bad fields, 32 of them at most."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise InvalidRequest([FieldViolation("body", f"is not JSON: {error}")]) from None
    if not isinstance(content, dict):
        raise InvalidRequest([FieldViolation("body", "must be an object")])
    try:
        return checked(kind, content)
    except InvalidRequest as error:
        model = content.get("model")
        error.model = model[:MOST_MODEL] if isinstance(model, str) else ""
        raise


def checked(kind: type[Read], content: dict[str, Any]) -> Read:
    """The same of a body that is an object."""
    found = Findings()
    fields = kind.rules.known_only(content, names_of(kind), found)
    try:
        made = kind.model_validate(fields)
    except ValidationError as error:
        note(error, kind, found)
        found.check()
        raise
    found.check()
    return made


def note(error: ValidationError, kind: type[BaseModel], found: Findings) -> None:
    """Add each error to `found`. Pydantic builds all of them or none, some microseconds each."""
    count = error.error_count()
    if count > MOST_ERRORS:
        found.add("body", f"has {count} errors, too many to name them")
        return
    for place, entry in enumerate(error.errors(include_url=False, include_input=False)):
        where, description = entry["loc"], description_of(entry)
        if entry["type"] == "extra_forbidden" and place < MOST_HINTS:
            description = unknown_text(str(where[-1]), names_of(model_at(kind, where[:-1])))
        found.add(path_of(where), description)


def model_at(model: type[BaseModel], place: Iterable[int | str]) -> type[BaseModel]:
    """The model of what is at that place in a body."""
    for name in place:
        for own, one in model.model_fields.items():
            if name in (own, one.alias):
                model = next(models_in(one.annotation), model)
                break
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def path_of(parts: Iterable[int | str]) -> str:
    """Where a field is in a body.

    >>> path_of(("messages", 0, "content"))
    'messages[0].content'
    """
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN]}" for part in parts)
    return path.lstrip(".") or "body"


DESCRIPTIONS: Mapping[str, str] = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "string_too_short": "must not be empty",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "extra_forbidden": UNKNOWN,
}


def description_of(entry: Any) -> str:
    """What is wrong, of an error of pydantic."""
    description = DESCRIPTIONS.get(entry["type"])
    if description is None:
        return str(entry["msg"]).removeprefix("Value error, ")
    return description.format(**entry.get("ctx", {}))
