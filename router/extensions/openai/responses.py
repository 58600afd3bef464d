"""Requests of OpenAI's Responses API.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from router.errors import MOST_FINDINGS
from router.extensions.openai import requests
from router.extensions.openai.fields import IGNORED, MODERATION, FieldRules, JsonModel, Refusal
from router.names import AUTO
from router.types import MAX_MESSAGES, MAX_STOPS

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (  # of the API; no answer has anything of the others
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
OF_FUNCTION = ("name", "description", "parameters", "strict")
TEXT_PARTS = ("input_text", "output_text", "text")
NO_STATE = Refusal("no response is kept: send the whole conversation in `input`")
NO_REASONING: tuple[dict[str, Any], ...] = ({}, {"effort": None}, {"effort": "none"}, {"effort": "minimal"})
SAME_IGNORED = ("prompt_cache_options", "prompt_cache_retention", "service_tier", "store")
RULES = FieldRules(
    {
        **{name: IGNORED[name] for name in SAME_IGNORED},
        "stream_options": "the events are the same with and without",
    },
    {
        "background": Refusal("wait for the answer, or stream it", (False,)),
        "context_management": Refusal("no prompt is cut or summarised", ([],)),
        "conversation": NO_STATE,
        "moderation": MODERATION,
        "previous_response_id": NO_STATE,
        "prompt": Refusal("no prompts are kept: send `instructions` and `input`"),
        "reasoning": Refusal("answers have no reasoning apart from the text", NO_REASONING),
        "truncation": Refusal("no prompt is cut", ("disabled",)),
    },
)
NO_ITEM = {
    "item_reference": "item_reference names an item that is not kept here: send the item itself",
    "reasoning": "reasoning items are not supported here: leave them out",
}
NO_PART = {
    "input_image": "images are not supported here: send text",
    "input_file": "files are not supported here: send their text as input_text",
    "input_audio": "audio is not supported here: send text",
}


def faults(found: Sequence[tuple[tuple[int | str, ...], str]]) -> ValidationError:
    """Texts about places of a value, as pydantic names them."""
    lines = [
        InitErrorDetails(type=PydanticCustomError("refused", "{text}", {"text": text}), loc=place, input=None)
        for place, text in found
    ]
    return ValidationError.from_exception_data("input", lines)


# -- What a conversation is made of


def text_of(value: Any) -> str:
    """A text, or the texts of its parts together. Raises ValidationError naming bad parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of parts")
    if len(value) > requests.MAX_PARTS:
        raise ValueError(f"must have at most {requests.MAX_PARTS} parts, got {len(value)}")
    for i, part in enumerate(value):
        check_part(i, part)
    return "".join(part["text"] for part in value)


def check_part(index: int, part: Any) -> None:
    """Raises ValidationError that says what is wrong with a part of a content."""
    if not isinstance(part, dict):
        raise faults([((index,), "must be an object with type and text")])
    kind = part.get("type")
    if kind not in TEXT_PARTS:
        known = NO_PART.get(kind) if isinstance(kind, str) else None
        raise faults([((index, "type"), known or "must be input_text or output_text")])
    if not isinstance(part.get("text"), str):
        raise faults([((index, "text"), "must be a text")])


Text = Annotated[Any, PlainValidator(text_of)]


class InputMessage(JsonModel):
    """A message; answers may be sent back as they came."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": self.role, "content": self.content}


class InputText(InputMessage):
    """An input that is a text."""


class InputCall(JsonModel):
    """A function call that the model made."""

    call_id: str
    name: str
    arguments: str

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class InputResult(JsonModel):
    """What a function returned."""

    call_id: str
    output: Text

    def chat(self) -> dict[str, Any]:
        """As a message of a chat."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}


InputItem = InputMessage | InputCall | InputResult
ITEMS: Mapping[str, type[InputItem]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputResult,
}


def item_of(value: Any) -> InputItem:
    """An item of a conversation, by its type. Raises ValidationError, ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    kind = value.get("type", "message")
    model = ITEMS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = NO_ITEM.get(kind) if isinstance(kind, str) else None
        raise faults([(("type",), known or f"must be {', '.join(ITEMS)}")])
    return model.model_validate(value)


_items: TypeAdapter[list[InputItem]] = TypeAdapter(
    Annotated[list[Annotated[Any, PlainValidator(item_of)]], Field(min_length=1, max_length=MAX_MESSAGES)]
)


def input_of(value: Any) -> Sequence[InputItem]:
    """The conversation; a text is one message of the user. Raises ValidationError, ValueError."""
    if isinstance(value, str):
        return [InputText(role="user", content=value)]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of items")
    if len(value) > MAX_MESSAGES:
        raise ValueError(f"must have at most {MAX_MESSAGES} items, got {len(value)}")
    return _items.validate_python(value)


# -- The request


class TextFormat(JsonModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextFields(JsonModel):
    """Of the text of an answer."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # changes nothing: say it in the prompt


def only_functions(value: Any) -> Any:
    """Tools, if all are functions. Raises ValidationError naming the others, ValueError."""
    if value is not None and not isinstance(value, list):
        raise ValueError("must be a list")
    if value:
        kinds = ((i, tool.get("type") if isinstance(tool, dict) else None) for i, tool in enumerate(value))
        found = [(i, kind) for i, kind in kinds if kind != "function"]
        if found:
            raise faults([((i, "type"), no_tool(kind)) for i, kind in found[:MOST_FINDINGS]])
    return value


def no_tool(kind: Any) -> str:
    """Why a tool of that kind is refused."""
    name = f"{kind[:40]} is not supported here" if isinstance(kind, str) else "must be there"
    return f"{name}: tools are functions that you run (type function)"


def known_include(value: Any) -> Any:
    """What answers are to include. Raises ValidationError naming what is unknown."""
    if value is None:
        return value
    if not isinstance(value, list):
        raise ValueError("must be a list")
    if unknown := [i for i, name in enumerate(value) if name not in INCLUDABLE][:MOST_FINDINGS]:
        raise faults([((i,), f"must be one of {', '.join(INCLUDABLE)}") for i in unknown])
    return value


class ResponseBody(JsonModel):
    """POST /v1/responses."""

    rules: ClassVar[FieldRules] = RULES

    input: Annotated[Any, PlainValidator(input_of)]
    model: str = AUTO
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    top_logprobs: int | None = None
    include: Annotated[Any, PlainValidator(known_include)] = None
    text: TextFields = TextFields()
    tools: Annotated[Any, PlainValidator(only_functions)] = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(requests.few_labels)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream: bool | None = None
    routing: requests.RoutingFields = requests.NO_HINTS

    @property
    def items(self) -> Sequence[InputItem]:
        """The conversation."""
        found: Sequence[InputItem] = self.input
        return found

    @property
    def logprobs(self) -> bool:
        """Whether the answer shows log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())
