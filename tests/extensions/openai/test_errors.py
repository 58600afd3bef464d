"""Errors as OpenAI's clients read them: codes, and fields in the words of the body."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from router.errors import AdapterNotFound
from router.extensions.openai import errors, requests
from tests.server.http_helpers import Http, StartWeb, asking

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
LONG = "x" * 5000


@pytest.mark.parametrize(
    ("body", "code", "param", "text"),
    [
        (asking(LONG), "context_length_exceeded", "messages", "maximum context length is 2048 tokens"),
        (asking(max_completion_tokens=5000), "invalid_request", "max_completion_tokens", "must be in [1, "),
        (asking(max_tokens=0), "invalid_request", "max_tokens", "must be in [1, "),
        (asking(min_tokens=5, max_completion_tokens=2), "invalid_request", "min_tokens", "max_completion_"),
        (asking(model="medical:9"), "model_not_found", "model", "model 'medical@9' not found; a model is"),
        (asking(model="My LoRA"), "invalid_request", "model", "must be NAME, NAME@VERSION, auto or base; a"),
        (asking(user="u" * 999), "invalid_request", "user", "must have at most"),
        (asking(regex="("), "invalid_request", "regex", ""),
        (asking(logit_bias={"3": 101}), "invalid_request", "logit_bias[3]", "must be in [-100, 100]"),
        (asking(logit_bias={"256": 1}), "invalid_request", "logit_bias[256]", "ids are 0 to 255"),
        (asking(choice=[""]), "invalid_request", "choice[0]", ""),
        (asking(metadata={"a": "b" * 99}), "invalid_request", "metadata[a]", "must have at most 64 bytes"),
        (asking(logprobs=True, top_logprobs=99), "invalid_request", "top_logprobs", "must be in [0, 20]"),
        (
            {"messages": [*([{"role": "system", "content": "s"}] * 3), *asking(" ")["messages"]]},
            "invalid_request",
            "messages[3].content",
            "must not be empty",
        ),
        (
            {"messages": [*asking()["messages"], {"role": "system", "content": "s"}]},
            "invalid_request",
            "messages[1].role",
            "'system' is allowed at the beginning only",
        ),
        (
            asking(routing={"mixture": [{"adapter": "a b"}]}),
            "invalid_request",
            "routing.mixture[0].adapter",
            "",
        ),
    ],
)
async def test_a_refusal_names_the_field_as_the_body_has_it(
    start_web: StartWeb, http: Http, body: dict[str, Any], code: str, param: str, text: str
) -> None:
    answer = await http(await start_web()).post(CHAT, json=body)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert text in error["message"]
    assert "adapters/" not in error["message"]
    assert "sampling" not in error["message"]


def test_the_error_for_an_unknown_model_keeps_what_is_near() -> None:
    body = requests.ChatCompletion.model_validate(asking())
    with pytest.raises(AdapterNotFound) as caught, errors.in_their_words(body, ""):
        raise AdapterNotFound("adapters/medicol", "; did you mean 'medical'?")
    text = "model 'medicol' not found; did you mean 'medical'?; a model is NAME, NAME@VERSION, auto or base"
    assert caught.value.message == text


async def test_a_prompt_that_is_too_long_names_the_prompt(start_web: StartWeb, http: Http) -> None:
    answer = await http(await start_web()).post(PLAIN, json={"prompt": LONG, "max_tokens": 7})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["reason"]) == (400, "prompt", "PROMPT_TOO_LONG")
    assert "prompt and max_tokens need" in error["message"]


async def test_bodies_that_are_encoded_or_too_large_are_refused_unread(
    start_web: StartWeb, http: Http
) -> None:
    client = http(await start_web())
    head = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await client.post(CHAT, content=b"\x1f\x8b", headers=head)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (415, "content-encoding")
    body = b'{"messages": "%s"}' % (b"x" * 3_000_000)
    answer = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert f"{len(body)} bytes, at most 2097152" in answer.json()["error"]["message"]


async def test_openais_client_raises_its_own_classes(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**asking(LONG))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**asking(), extra_body={"temprature": 1})
    assert caught.value.param == "temprature"
