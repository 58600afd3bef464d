"""Several answers in one request: `n` of each, to several prompts, all in the engine at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.fake import FakeEngine
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.lab import experimenting, running
from tests.extensions.openai.validated import validated, validated_events
from tests.security.helpers import write_clients
from tests.server.helpers import Connect, until
from tests.server.http_helpers import Http, StartWeb, asking

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
PROMPTS = {"model": "medical", "prompt": ["a b", "c d e"], "n": 2, "logprobs": 1}


async def test_a_chat_has_n_choices_by_one_decision(
    start_web: StartWeb, http: Http, fakes: SimpleNamespace
) -> None:
    server = await start_web(**vars(fakes))
    body = asking(n=3, stream=False)
    answer = validated((await http(server).post(CHAT, json=body)).json())
    alone = validated((await http(server).post(CHAT, json=asking())).json())
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {
        alone["choices"][0]["message"]["content"]  # greedy
    }
    assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 3 * alone["usage"]["completion_tokens"]
    assert len(fakes.router.requests) == 2
    assert server.admission.in_flight == 0


async def test_each_prompt_has_its_answers_in_order(start_web: StartWeb, http: Http) -> None:
    answer = validated((await http(await start_web()).post(PLAIN, json=PROMPTS)).json())
    ends = [choice["text"].partition("] ")[2] for choice in answer["choices"]]
    assert ends == ["a b", "a b", "c d e", "c d e"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["routing"]["adapter"] for choice in answer["choices"]} == {
        "adapters/medical/versions/1.0.0"
    }
    assert answer["usage"]["prompt_tokens"] == len("a b") + len("c d e")


@pytest.mark.parametrize(("path", "body"), [(CHAT, asking(n=3, logprobs=True)), (PLAIN, PROMPTS)])
async def test_a_stream_says_the_same(
    start_web: StartWeb, http: Http, path: str, body: dict[str, Any]
) -> None:
    client = http(await start_web())
    whole = validated((await client.post(path, json=body)).json())
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await client.post(path, json=body | stream)
    assert answer.text.endswith("data: [DONE]\n\n")
    *events, last = validated_events(answer.text)
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        text = "".join(one["delta"].get("content", "") if path == CHAT else one["text"] for one in mine)
        assert text == (choice["message"]["content"] if path == CHAT else choice["text"])
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


async def test_samples_are_in_one_batch_and_have_seeds_of_their_own(start_web: StartWeb, http: Http) -> None:
    engine = FakeEngine()
    client = http(await start_web(engine=engine))
    await client.post(CHAT, json=asking(temperature=1, seed=7))
    alone = engine.steps
    for _ in range(2):
        await client.post(CHAT, json=asking(temperature=1, seed=7, n=8))
    assert engine.steps < 2 * alone * 3  # not eight answers one after the other
    seeds = [job.params.seed for job in engine.jobs]
    assert (seeds[0], seeds[1:9]) == (7, seeds[9:])
    assert (seeds[1], len(set(seeds))) == (7, 8)
    assert len({job.request_id for job in engine.jobs}) == len(engine.jobs)


async def test_a_place_for_each_answer_or_none_at_all(start_web: StartWeb, http: Http) -> None:
    engine = FakeEngine(max_running=4, max_queue=0)
    server = await start_web(engine=engine, max_running=4, max_queue=0)
    answer = await http(server).post(CHAT, json=asking(n=5, stream=True))
    assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "QUEUE_FULL")
    assert (server.admission.in_flight, list(engine.jobs)) == (0, [])
    assert (await http(server).post(CHAT, json=asking(n=4))).status_code == 200


async def test_each_answer_counts_against_quotas(start_web: StartWeb, http: Http, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, more="requests_per_minute = 4", team=("infer",))
    server = await start_web(clients=clients.path)
    client = http(server, headers={"authorization": f"Bearer {clients.team}"})
    assert (await client.post(CHAT, json=asking(n=3))).status_code == 200
    assert (await client.post(CHAT, json=asking(n=2))).json()["error"]["code"] == "rate_limit_exceeded"


async def test_an_error_of_one_ends_all(start_web: StartWeb, http: Http) -> None:
    engine = FakeEngine()
    server = await start_web(engine=engine)
    answer = await http(server).post(PLAIN, json={"prompt": ["a", "x" * 5000]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt[1]")
    assert (await http(server).post(PLAIN, json={"prompt": ["a", " "]})).json()["error"][
        "param"
    ] == "prompt[1]"
    engine.fail_step("no")
    assert (await http(server).post(CHAT, json=asking(n=2))).status_code == 500
    await until(lambda: server.admission.in_flight == 0 and not server.engine.status().busy)


async def test_who_leaves_takes_all_along(start_web: StartWeb, http: Http) -> None:
    server = await start_web(engine=FakeEngine(step_seconds=0.02))
    body = asking(max_tokens=500, min_tokens=500, n=3, stream=True)
    async with http(server).stream("POST", CHAT, json=body) as answer:
        assert await anext(answer.aiter_lines())
        assert server.admission.in_flight == 3
        assert server.engine.status().running + server.engine.status().waiting == 3
    await until(lambda: server.admission.in_flight == 0 and not server.engine.status().busy)


async def test_too_many_are_refused_by_name(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    for path, body, param in (
        (CHAT, asking(n=9), "n"),
        (CHAT, asking(n=0), "n"),
        (PLAIN, {"prompt": ["a"] * 20, "n": 4}, "n"),
        (PLAIN, {"prompt": ["a"] * 65}, "prompt"),
        (PLAIN, {"prompt": []}, "prompt"),
    ):
        error = (await client.post(path, json=body)).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_request", param), error


async def test_a_unit_counts_once_in_an_experiment(
    fakes: SimpleNamespace, start_web: StartWeb, connect: Connect, http: Http
) -> None:
    async with experimenting(MemoryStore(), fakes, start_web, connect) as stubs:
        await running(stubs)
        body = asking("a medical question", user="anna", n=4)
        answer = (await http(stubs.app).post(CHAT, json=body)).json()
        await stubs.live.recorder.flush()
        (rows,) = [rows for rows in stubs.store.rows.values() if rows.exposures]
        assert set(rows.exposures) == {answer["id"].removeprefix("chatcmpl-")}


async def test_calls_of_functions_are_in_each_choice(start_web: StartWeb, http: Http) -> None:
    parameters = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = asking(n=2, tools=[tool], tool_choice="required")
    client = http(await start_web())
    whole = validated((await client.post(CHAT, json=body)).json())
    for choice in whole["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f"]
    events = validated_events((await client.post(CHAT, json=body | {"stream": True})).text)
    assert [e["choices"][0]["finish_reason"] for e in events].count("tool_calls") == 2


async def test_many_at_once(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    answers = await asyncio.gather(*(client.post(CHAT, json=asking(f"q {i}", n=4)) for i in range(16)))
    for number, answer in enumerate(answers):
        texts = {choice["message"]["content"] for choice in answer.json()["choices"]}
        assert len(texts) == 1
        assert texts.pop().endswith(f"q {number}")
