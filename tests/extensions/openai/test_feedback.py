"""What became of answers, told over HTTP: outcomes and feedback by response id."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from router.errors import InvalidRequest
from router.extensions.openai import routes
from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from router.v1 import experiments_pb2 as experiments
from router.v1 import feedback_pb2 as feedback
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.lab import experimenting, running
from tests.security.helpers import write_clients
from tests.server.helpers import Connect
from tests.server.http_helpers import Http, StartWeb, asking

FEEDBACK = "/v1/feedback"


@pytest.fixture
async def lab(
    fakes: SimpleNamespace, start_web: StartWeb, connect: Connect, http: Http
) -> AsyncIterator[SimpleNamespace]:
    """A server with a running experiment on medical, and `answered` and `told` over HTTP."""
    async with experimenting(MemoryStore(), fakes, start_web, connect) as stubs:
        await running(stubs)
        client = http(stubs.app)

        async def answered() -> str:
            made = await client.post("/v1/chat/completions", json=asking("a medical question", user="anna"))
            assert made.status_code == 200
            await stubs.live.recorder.flush()
            return str(made.json()["id"])

        async def told(**body: Any) -> httpx2.Response:
            return await client.post(FEEDBACK, json=body)

        yield SimpleNamespace(**vars(stubs), answered=answered, told=told)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "reason"}
    return {"status": answer.status_code, **error}


async def test_an_outcome_counts_once_under_its_key(lab: SimpleNamespace) -> None:
    rid = await lab.answered()
    said = {"response_id": rid, "metric": "solved", "value": 1, "idempotency_key": "k"}
    first, again = await lab.told(**said), await lab.told(**said)
    assert first.json() == {"object": "feedback", "response_id": rid, "status": "counted"}
    assert again.json()["status"] == "duplicate"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert "x-router-response-id" not in first.headers  # this is no answer
    assert lab.store.outcomes["k"].outcome.value == 1.0


@pytest.mark.parametrize(("value", "kept"), [(True, 1.0), (False, 0.0), (0.25, 0.25), (0, 0.0)])
async def test_numbers_and_booleans_are_values(lab: SimpleNamespace, value: Any, kept: float) -> None:
    rid, now = await lab.answered(), int(time.time())
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    told = await lab.told(response_id=rid, metric="happy", value=value, time=at, idempotency_key="k")
    assert told.json()["status"] == "counted"
    found = lab.store.outcomes["k"].outcome
    assert (found.metric, found.value, found.time) == ("happy", kept, now)


async def test_what_is_wrong_with_an_outcome_is_named_as_the_body_has_it(lab: SimpleNamespace) -> None:
    rid = await lab.answered()
    found = error_of(await lab.told(response_id=rid, metric="solved", value=7))
    assert (found["status"], found["code"], found["param"]) == (400, "invalid_request", "value")
    assert found["message"].startswith("value: ")
    found = error_of(await lab.told(response_id=rid, metric="no metric", value=1, idempotency_key="x" * 200))
    assert (found["param"], "idempotency_key: must" in found["message"]) == ("metric", True)
    found = error_of(await lab.told(response_id="0" * 32, metric="solved", value=1))
    assert (found["status"], found["code"]) == (404, "not_found")


async def test_feedback_says_who_should_have_answered(
    start_web: StartWeb, http: Http, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router.server.access")
    store = FeedbackStore.in_folder(tmp_path)
    server = await start_web(feedback=FeedbackRecorder(store, "texts", 90))
    client = http(server)
    rid = (await client.post("/v1/chat/completions", json=asking("a medical question"))).json()["id"]

    async def told(name: str, **more: Any) -> httpx2.Response:
        return await client.post(FEEDBACK, json={"response_id": rid, "should_have_been": name, **more})

    kept = {"object": "feedback", "response_id": rid, "kept": "texts", "replaced": False}
    assert (await told("legal")).json() == kept
    assert caplog.records[-1].fields["route"] == FEEDBACK  # type: ignore[attr-defined]
    page = generate_latest(server.metrics.registry).decode()
    labels = f'http_request_method="POST",http_response_status_code="200",http_route="{FEEDBACK}"'
    assert labels in page
    assert (await told("base", comment="small talk")).json() == kept | {"replaced": True}
    (one,) = store.read("medical")  # the latest feedback
    assert (one.verdict, one.should_have_been, one.comment) == ("bad", "base", "small talk")
    for name, status in (("nobody", 404), ("legal@2.0.0", 400), ("auto", 400)):
        found = error_of(await told(name))
        assert (found["status"], found["param"]) == (status, "should_have_been"), name
    assert error_of(await told("nobody"))["code"] == "model_not_found"


async def test_feedback_is_good_bad_or_a_corrected_text(
    start_web: StartWeb, http: Http, tmp_path: Path
) -> None:
    store = FeedbackStore.in_folder(tmp_path)
    client = http(await start_web(feedback=FeedbackRecorder(store, "texts", 90)))
    made = await client.post("/v1/chat/completions", json=asking("a medical question", user="ann"))
    rid = made.json()["id"]

    async def told(**body: Any) -> httpx2.Response:
        return await client.post(FEEDBACK, json={"response_id": rid, **body})

    kept = {"object": "feedback", "response_id": rid, "kept": "texts", "replaced": False}
    assert (await told(feedback="good")).json() == kept
    assert (await told(corrected="that", comment="why")).json() == kept | {"replaced": True}
    assert (await told(feedback="bad", corrected="that")).json()["replaced"]
    (one,) = store.read("medical")
    assert (one.verdict, one.corrected, one.messages) == (
        "corrected",
        "that",
        (("user", "a medical question"),),
    )
    assert one.answer == made.json()["choices"][0]["message"]["content"]
    forgotten = {"response_id": "0" * 32, "feedback": "good", "user": "ann", "prompt": "p", "answer": "a"}
    assert error_of(await told(**forgotten))["status"] == 404
    assert (await told(**forgotten, answered_by="medical@1.0.0")).status_code == 200
    assert [found.version for found in store.read("medical")] == ["1.0.0", "1.0.0"]
    for name, value, field in (
        ("feedback", "good", "feedback"),
        ("user", "u" * 300, "user"),
        ("answered_by", "a/b/c", "answered_by"),
    ):
        wrong = {"corrected": "that", "answered_by": "medical"} | {name: value}
        found = error_of(await told(**wrong))
        assert (found["status"], found["param"]) == (400, field)
        assert found["message"].startswith(f"{field}: ")


async def test_an_id_may_have_what_the_api_puts_in_front(lab: SimpleNamespace) -> None:
    rid = await lab.answered()
    assert rid.startswith("chatcmpl-")
    for name in (rid, rid.removeprefix("chatcmpl-")):
        told = await lab.told(response_id=name, metric="solved", value=1, idempotency_key=name[:9])
        assert (told.json()["status"], told.json()["response_id"]) == ("counted", name)


async def test_openais_client_sends_it_as_it_sends_what_it_does_not_know(
    client: openai.AsyncOpenAI,
) -> None:
    body = {"response_id": "0" * 32, "should_have_been": "legal"}
    with pytest.raises(openai.NotFoundError) as refused:
        await client.post("/feedback", cast_to=object, body=body)
    assert "no answer of yours" in refused.value.message


async def test_without_experiments_and_feedback_it_is_said_how_to_get_them(
    start_web: StartWeb, http: Http
) -> None:
    client = http(await start_web())
    said = {"response_id": "0" * 32}
    found = error_of(await client.post(FEEDBACK, json=said | {"metric": "solved", "value": 1}))
    assert (found["status"], found["code"]) == (400, "failed_precondition")
    assert "experiments" in found["message"]
    client = http(await start_web(feedback="off"))
    found = error_of(await client.post(FEEDBACK, json=said | {"feedback": "good"}))
    assert (found["code"], "setting `feedback.keep`" in found["message"]) == ("failed_precondition", True)


async def test_roles_and_quotas_are_those_of_grpc(start_web: StartWeb, http: Http, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, more="outcomes_per_day = 1", team=("infer",), watcher=("observe",))
    server = await start_web(clients=clients.path, feedback="labels")

    def of(token: str) -> httpx2.AsyncClient:
        return http(server, headers={"authorization": f"Bearer {token}"})

    team, said = of(clients.team), {"should_have_been": "legal", "response_id": ""}
    assert (await http(server).post(FEEDBACK, json=said)).status_code == 401
    assert error_of(await of(clients.watcher).post(FEEDBACK, json=said))["code"] == "role_missing"
    said["response_id"] = (await team.post("/v1/chat/completions", json=asking())).json()["id"]
    assert (await team.post(FEEDBACK, json=said)).json()["kept"] == "labels"
    refused = await team.post(FEEDBACK, json=said)
    assert (error_of(refused)["status"], error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1


async def test_bodies_that_are_none(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    for content, content_type, status in [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"response_id": "x", "metric": "m", "value": 1}', "text/plain", 415),
        (json.dumps({"response_id": "x" * (300 << 10)}).encode(), "application/json", 413),
    ]:
        headers = {"content-type": content_type}
        answer = await client.post(FEEDBACK, content=content, headers=headers)
        assert error_of(answer)["status"] == status


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, {"metric"}),
        ({"metric": "m"}, {"value"}),
        ({"metric": "m", "value": "1"}, {"value"}),
        ({"value": 1, "prompt": "t"}, {"metric", "prompt"}),
        ({"metric": "m", "value": 1, "should_have_been": "legal"}, {"metric", "value"}),
        ({"should_have_been": "legal", "idempotency_key": "k"}, {"idempotency_key"}),
        ({"should_have_been": ""}, {"should_have_been"}),
        ({"response_id": "", "metric": "m", "value": 1}, {"response_id"}),
        ({"feedback": "fine"}, {"feedback"}),
        ({"feedback": "good", "metric": "m"}, {"metric"}),
        ({"metric": "m", "value": 1, "prompt": "p"}, {"prompt"}),
        ({"metric": "m", "value": 1, "time": "yesterday"}, {"time"}),
        ({"metric": "m", "value": 1, "time": "2026-11-27T10:00:00"}, {"time"}),
    ],
)
def test_every_bad_field_is_named(fields: dict[str, Any], bad: set[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        routes.parsed_feedback(json.dumps({"response_id": "x", **fields}).encode())
    assert {violation.field.partition(".")[0] for violation in caught.value.violations} == bad


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TIMES = st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat())
FIELDS = (
    *("response_id", "metric", "value", "time", "idempotency_key", "should_have_been"),
    *("feedback", "corrected", "answered_by", "user"),
)
KINDS = {
    routes.OUTCOME: experiments.RecordOutcomeRequest,
    routes.FEEDBACK: feedback.RecordFeedbackRequest,
}


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | TIMES))
def test_any_json_is_one_of_the_messages_or_refused_in_words(body: dict[str, Any]) -> None:
    try:
        method, message = routes.message_of(routes.parsed_feedback(json.dumps(body).encode()))
    except InvalidRequest as error:
        refusal = error
    else:
        assert isinstance(message, KINDS[method])
        return
    assert all(violation.field and violation.description for violation in refusal.violations)
