"""Answers of the default base under the schemas that libraries send for a class: they end by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from jsonschema import validate

from router.client import Client, FinishReason
from tests.addresses import free_address
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ASKED = "Invent a pet for a story: its kind, its age, its owner and its toys."
NAME = {"maxLength": 12, "title": "Name", "type": "string"}
CITY = {"anyOf": [{"maxLength": 12, "type": "string"}, {"type": "null"}], "title": "City"}
OWNER = {"properties": {"name": NAME, "city": CITY}, "required": ["name"], "title": "Owner", "type": "object"}
COLOR = {"maxLength": 8, "title": "Color", "type": "string"}
TOY = {"properties": {"color": COLOR}, "required": ["color"], "title": "Toy", "type": "object"}
KIND = {"enum": ["cat", "dog"], "title": "Kind", "type": "string"}
NO_OTHERS = {"additionalProperties": False}
# Of one class: LangChain 1.5.2 given a dict, Instructor 1.17.0 and the Agents SDK 0.24.0 without `strict`.
PET: dict[str, Any] = {
    "$defs": {"Kind": KIND, "Owner": OWNER, "Toy": TOY},
    "description": "A pet.",
    "properties": {
        "kind": {"$ref": "#/$defs/Kind"},
        "age": {"maximum": 20, "minimum": 0, "title": "Age", "type": "integer"},
        "owner": {"$ref": "#/$defs/Owner"},
        "second_owner": {"anyOf": [{"$ref": "#/$defs/Owner"}, {"type": "null"}], "default": None},
        "toys": {"items": {"$ref": "#/$defs/Toy"}, "maxItems": 2, "title": "Toys", "type": "array"},
    },
    "required": ["kind", "age", "owner"],
    "title": "Pet",
    "type": "object",
}
# Pydantic AI 2.68.0.
CLOSED_PET = PET | NO_OTHERS | {"$defs": {"Kind": KIND, "Owner": OWNER | NO_OTHERS, "Toy": TOY | NO_OTHERS}}
# LangChain and the Agents SDK given a class.
STRICT_PET = CLOSED_PET | {
    "$defs": CLOSED_PET["$defs"] | {"Owner": OWNER | NO_OTHERS | {"required": ["name", "city"]}},
    "required": list(PET["properties"]),
}
# An earlier pydantic, where a field of a class has a default or a description.
WRAPPED_PET = PET | {"properties": PET["properties"] | {"owner": {"allOf": [{"$ref": "#/$defs/Owner"}]}}}
SCHEMAS = {"open": PET, "closed": CLOSED_PET, "strict": STRICT_PET, "wrapped": WRAPPED_PET}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Clients of a server on the default base."""
    at = free_address()
    flags = ("--http-listen", at, "--bare")
    with (
        serving(tmp_path_factory.mktemp("schemas"), *flags) as (_, address),
        Client(address) as client,
        httpx2.Client(base_url=f"http://{at}/v1", timeout=300) as http,
    ):
        yield SimpleNamespace(client=client, http=http)


def checked(text: str) -> None:
    """A pet, and nothing else."""
    validate(json.loads(text), CLOSED_PET)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_chat_ends(base: SimpleNamespace, kind: str) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "Pet", "schema": SCHEMAS[kind]}}
    messages = [{"role": "user", "content": ASKED}]
    body = {"model": "base", "messages": messages, "response_format": shape, "max_tokens": 300}
    answer = base.http.post("/chat/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "stop", answer
    checked(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_call_ends(base: SimpleNamespace, kind: str) -> None:
    tool = {"type": "function", "function": {"name": "Pet", "parameters": SCHEMAS[kind]}}
    messages = [{"role": "user", "content": ASKED}]
    body = {"model": "base", "messages": messages, "tools": [tool], "tool_choice": "required"}
    answer = base.http.post("/chat/completions", json=body | {"max_tokens": 300}).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    checked(call["function"]["arguments"])


def test_a_response_ends(base: SimpleNamespace) -> None:
    shape = {"format": {"type": "json_schema", "name": "Pet", "schema": PET, "strict": False}}
    body = {"model": "base", "input": ASKED, "text": shape, "max_output_tokens": 300}
    answer = base.http.post("/responses", json=body).json()
    assert answer["status"] == "completed", answer
    checked(answer["output"][0]["content"][0]["text"])


def test_an_answer_over_grpc_ends(base: SimpleNamespace) -> None:
    answer = base.client.generate(ASKED, json_schema=PET, max_tokens=300, timeout=300)
    assert answer.finish_reason is FinishReason.STOP, answer
    checked(answer.text)


def test_an_open_object_stays_open(base: SimpleNamespace) -> None:
    """Two properties are asked for, and the schema lists one."""
    schema = {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "minProperties": 2,
        "maxProperties": 2,
        "additionalProperties": True,
    }
    answer = base.client.generate("Count.", json_schema=schema, max_tokens=200)
    assert '{"a":1,"' in answer.text, answer
