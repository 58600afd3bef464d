"""OpenAI's own client, unchanged: answers whole and streamed, models, errors in its classes."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import openai
import pytest

from router.engine.fake import FakeEngine
from tests.server.helpers import until
from tests.server.http_helpers import Http, StartWeb, asking, connect

USER: Any = [{"role": "user", "content": "one two three"}]


async def test_models_are_auto_the_base_and_what_adapters_there_are(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert names == ["auto", "base", "legal", "legal@2.0.0", "medical", "medical@1.0.0"]
    assert (await client.models.retrieve("legal@2.0.0")).id == "legal@2.0.0"
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("nobody")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("model", "answered"),
    [
        ("medical", "medical@1.0.0"),
        ("legal@2.0.0", "legal@2.0.0"),
        ("adapters/legal/versions/2.0.0", "legal@2.0.0"),
        ("base", "base"),
        ("auto", "base"),
    ],
)
async def test_the_model_says_who_answers(client: openai.AsyncOpenAI, model: str, answered: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=USER, max_tokens=8)
    assert answer.model == answered
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert choice.message.content.endswith("one two three")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_headers_tell_the_decision_and_the_id_of_the_answer(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="medical", messages=USER, extra_headers={"x-request-id": "mine-7"}
    )
    assert raw.headers["x-router-adapter"] == "adapters/medical/versions/1.0.0"
    assert raw.headers["x-router-confidence"] == "1.0000"
    assert raw.headers["x-router-reason"] == "explicit"
    assert raw.headers["x-request-id"] == "mine-7"
    answer = raw.parse()
    assert f"chatcmpl-{raw.headers['x-router-response-id']}" == answer.id
    assert answer.model_extra is not None
    assert answer.model_extra["routing"]["adapter"] == "adapters/medical/versions/1.0.0"


async def test_a_stream_says_the_same_as_a_whole_answer(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="medical", messages=USER)
    stream = await client.chat.completions.create(
        model="medical", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


async def test_plain_completions_continue_the_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="base", prompt="one two three", max_tokens=9, logprobs=1)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.endswith("one two three")
    shown = answer.choices[0].logprobs
    assert shown is not None
    assert "".join(shown.tokens or ()) == answer.choices[0].text
    stream = await client.completions.create(model="base", prompt=["one two three"], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == answer.choices[0].text


async def test_logprobs_of_a_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="base", messages=USER, logprobs=True, top_logprobs=2)
    shown = answer.choices[0].logprobs
    assert shown is not None
    assert "".join(token.token for token in shown.content or ()) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in shown.content or ())


async def test_errors_come_as_the_clients_own_classes(client: openai.AsyncOpenAI) -> None:
    async def refused(**fields: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**asking(**fields))
        return caught.value

    unknown = await refused(model="nobody")
    assert (type(unknown), unknown.code, unknown.param) == (openai.NotFoundError, "model_not_found", "model")
    hot = await refused(temperature=9)
    assert (type(hot), hot.param) == (openai.BadRequestError, "temperature")
    tools: Any = [{"type": "function", "function": {"name": "f g"}}]
    assert (await refused(tools=tools)).param == "tools[0].function.name"
    assert (await refused(n=9)).param == "n"
    assert hot.request_id


async def test_a_refusal_while_an_answer_streams_is_its_last_event(start_web: StartWeb, http: Http) -> None:
    server = await start_web(engine=FakeEngine(step_seconds=0.02), max_deadline_seconds=0.5)
    body = asking(max_tokens=400, min_tokens=400, stream=True)
    answer = await http(server).post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in answer.text


async def test_who_leaves_takes_the_answer_along(start_web: StartWeb, http: Http) -> None:
    server = await start_web(engine=FakeEngine(step_seconds=0.02))
    client = http(server)
    body = asking(max_tokens=500, min_tokens=500, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert await anext(answer.aiter_lines())
        assert server.admission.in_flight == 1
    await until(lambda: server.admission.in_flight == 0 and not server.engine.status().busy)


async def test_what_is_not_served_is_said_in_openais_shape(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    for path, method, status in [
        ("/v1/moderations", "POST", 404),
        ("/v1/chat/completions", "GET", 405),
        ("/v1/models", "POST", 405),
    ]:
        answer = await client.request(method, path)
        assert answer.status_code == status, path
        assert path in answer.json()["error"]["message"]


async def test_bodies_that_are_none(start_web: StartWeb, http: Http) -> None:
    server = await start_web()
    client = http(server)
    for content, content_type, status in [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 30_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b"", "application/json", 400),
        (json.dumps(asking()).encode(), "text/plain", 415),  # what a page of another origin may send unasked
        (json.dumps(asking()).encode(), "application/x-www-form-urlencoded", 415),
        (json.dumps(asking()).encode(), "", 415),
        (json.dumps(asking()).encode(), "application/vnd.api+json; charset=utf-8", 200),
        (json.dumps(asking("x" * 3_000_000)).encode(), "application/json", 413),
    ]:
        answer = await client.post(
            "/v1/chat/completions", content=content, headers={"content-type": content_type}
        )
        assert answer.status_code == status, (content[:9], content_type)
        if status != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code", "reason"}
        assert server.admission.in_flight == 0


async def test_a_server_that_drains_refuses_and_lets_answers_end(start_web: StartWeb, http: Http) -> None:
    server = await start_web(engine=FakeEngine(step_seconds=0.02), drain_seconds=5.0)
    async with connect(server) as client:
        asked = client.chat.completions.create(**asking(max_tokens=60), extra_body={"min_tokens": 60})
        running = asyncio.ensure_future(asked)
        await until(lambda: server.admission.in_flight == 1)
        stopping = asyncio.ensure_future(server.stop())
        assert (await running).choices[0].finish_reason in ("stop", "length")
        await stopping
        with pytest.raises(openai.APIError):
            await client.chat.completions.create(**asking())


async def test_a_request_is_logged_with_its_method_route_and_status(
    start_web: StartWeb, http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router.server.access")
    client = http(await start_web())
    await client.post("/v1/chat/completions", json=asking())
    await client.get("/v1/models/nobody")
    said = ("transport", "method", "route", "status", "code")
    lines = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert [tuple(line[key] for key in said) for line in lines] == [
        ("http", "POST", "/v1/chat/completions", 200, "OK"),
        ("http", "GET", "/v1/models/{model}", 404, "NOT_FOUND"),
    ]
