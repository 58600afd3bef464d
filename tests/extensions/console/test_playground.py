"""The playground: decisions and streams for its script, each told by its own response."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2

from router.extensions.console.decisions import line_of
from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from router.types import AdapterProfile
from router.v1 import inference_pb2 as pb
from tests.extensions.console.conftest import Roled, csrf, post
from tests.server.helpers import until
from tests.server.http_helpers import Http, StartWeb

HOME = "/console/playground"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


async def headers(browser: httpx2.AsyncClient, accept: str = "application/json") -> dict[str, str]:
    return {"accept": accept, "x-csrf-token": await csrf(browser)}


async def told(browser: httpx2.AsyncClient, path: str, **fields: str) -> tuple[int, Any]:
    answer = await browser.post(HOME + path, data=fields, headers=await headers(browser))
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


async def streamed(browser: httpx2.AsyncClient, **fields: str) -> list[tuple[str, Any]]:
    """Names and data of the events."""
    answer = await browser.post(
        HOME + "/stream", data=fields, headers=await headers(browser, "text/event-stream")
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [read(part) for part in answer.text.strip().split("\n\n")]


def read(event: str) -> tuple[str, Any]:
    lines = dict(line.split(": ", 1) for line in event.split("\n"))
    return lines.get("event", "message"), json.loads(lines["data"])


async def test_the_page_offers_whom_one_may_ask(opened: SimpleNamespace) -> None:
    page = (await opened.http.get(HOME, params={"text": HOSTILE, "model": "medical"})).text
    for name in ("auto", "base", "medical", "medical@1.0.0", "legal@2.0.0"):
        assert f'<option value="{name}">' in page
    assert "<img" not in page.partition("<main")[2]
    assert "&lt;script&gt;" in page
    assert 'value="medical"' in page
    assert 'data-feedback="labels"' in page


async def test_examples_of_adapters_are_offered_as_text(opened: SimpleNamespace) -> None:
    profiles = (AdapterProfile("tax", "1", examples=(HOSTILE, "more")), AdapterProfile("poems", "1"))
    opened.registry.profiles = lambda: profiles
    page = (await opened.http.get(HOME)).text
    assert "/console/playground?text=%3Cscript%3E" in page
    assert "an example of tax" in page
    assert "poems" not in page
    assert "<img" not in page.partition("<main")[2]


async def test_a_stream_says_who_answers_then_what(opened: SimpleNamespace) -> None:
    events = await streamed(opened.http, text=f"medical {HOSTILE}", model="auto", explain="yes")
    assert [name for name, _ in events if name != "delta"] == ["started", "finished"]
    decision = events[0][1]["decision"]
    assert (decision["model"], decision["reason"]) == ("medical@1.0.0", "classified")
    assert decision["digest"] == opened.registry.get("medical").digest
    assert (decision["confidence"], decision["threshold"]) == (0.9, 0.5)
    assert decision["votes"] == [
        {
            "classifier": "words",
            "scores": [["medical", 0.9]],
            "more": 0,
            "declined": False,
            "error": "",
            "evidence": "",
            "seconds": 0.0001,
        }
    ]
    assert HOSTILE.split()[0] in "".join(data["text"] for name, data in events if name == "delta")
    finished = events[-1][1]
    assert (finished["reason"], finished["tokens"] > 0) == ("stop", True)


async def test_columns_are_told_by_their_own_responses(opened: SimpleNamespace) -> None:
    asked = ("medical", "legal@2.0.0", "base")
    said = {"text": "one two three four five", "seed": "7"}
    opened.engine.hold()
    asking = [asyncio.create_task(streamed(opened.http, model=name, **said)) for name in asked]
    await until(lambda: opened.server.admission.in_flight == 3)
    before = opened.engine.steps
    opened.engine.resume()
    many = await asyncio.gather(*asking)
    assert opened.engine.steps - before < 12  # one batch: 18 tokens took so few
    decisions = [events[0][1]["decision"] for events in many]
    assert [one["model"] for one in decisions] == ["medical@1.0.0", "legal@2.0.0", "base"]
    digests = [opened.registry.get(name).digest for name in ("medical", "legal")]
    assert [one["digest"] for one in decisions] == [*digests, ""]
    assert len({events[0][1]["response_id"] for events in many}) == 3
    assert {job.params.seed for job in opened.engine.jobs} == {7}
    answers = ["".join(data["text"] for name, data in events if name == "delta") for events in many]
    assert len(set(answers)) == 3  # the fake engine tags each with its adapter


async def test_a_decision_alone_generates_nothing(opened: SimpleNamespace) -> None:
    status, decision = await told(opened.http, "/route", text="a legal question", model="auto")
    assert (status, decision["model"], decision["votes"][0]["classifier"]) == (200, "legal@2.0.0", "words")
    status, decision = await told(opened.http, "/route", text="what?", model="auto")
    assert (decision["model"], decision["reason"], decision["votes"][0]["declined"]) == (
        "base",
        "abstained",
        True,
    )
    assert not opened.engine.jobs


async def test_what_is_wrong_is_told_as_data_with_its_field(opened: SimpleNamespace) -> None:
    wrong = {
        "sampling.temperature": {"temperature": "warm"},
        "sampling.max_tokens": {"max_tokens": "1.5"},
        "sampling.seed": {"seed": "9" * 30},
        "input": {"text": ""},
        "routing.adapter": {"model": "No Such"},
    }
    for field, fields in wrong.items():
        body = {"text": "x", "model": "auto"} | fields
        answer = await opened.http.post(
            HOME + "/stream", data=body, headers=await headers(opened.http, "text/event-stream")
        )
        assert (answer.status_code, answer.json()["error"]["field"].startswith(field)) == (400, True), (
            answer.text
        )
    status, body = await told(opened.http, "/route", text="x", model="nobody")
    assert (status, body["error"]["reason"]) == (404, "ADAPTER_NOT_FOUND")
    huge = await opened.http.post(
        HOME + "/stream", data={"text": "é" * 600_000}, headers=await headers(opened.http)
    )
    assert (huge.status_code, huge.json()["error"]["reason"]) == (413, "BODY_TOO_LARGE")
    status, body = await told(opened.http, "/route", text="x" * 1_100_000)
    assert (status, body["error"]["field"]) == (400, "input.text")  # larger than 64 KiB, so it came whole


async def test_a_fault_in_the_middle_is_the_last_event(opened: SimpleNamespace) -> None:
    opened.engine.hold()
    stream = asyncio.create_task(streamed(opened.http, text="one two three", model="base"))
    await until(lambda: opened.engine.busy)
    opened.engine.fail_step("broken")
    opened.engine.resume()
    events = await stream
    assert events[0][0] == "started"
    name, last = events[-1]
    assert (name, last["error"]["status"]) == ("message", 500)
    assert "broken" not in last["error"]["message"]


async def test_who_leaves_takes_the_answer_along(opened: SimpleNamespace) -> None:
    opened.engine.hold()
    asked = {"text": "one two three", "model": "base"}
    stream = asyncio.create_task(
        opened.http.post(HOME + "/stream", data=asked, headers=await headers(opened.http))
    )
    await until(lambda: opened.engine.busy)
    stream.cancel()
    await until(lambda: opened.server.admission.in_flight == 0)
    opened.engine.resume()


async def test_the_role_is_infer_and_others_are_told_so(roled: Roled) -> None:
    site = await roled()
    assert (await site.ivan.get(HOME)).status_code == 200
    status, body = await told(site.olga, "/route", text="x")
    assert (status, "needs the role infer" in body["error"]["message"]) == (403, True)
    refused = await post(site.nobody, HOME + "/stream", text="x")
    assert refused.status_code == 401


async def test_earlier_turns_and_a_shape_are_part_of_the_request(opened: SimpleNamespace) -> None:
    said = {
        "earlier-0": "a medical question",
        "earlier-1": "an answer",
        "system": "Be brief.",
        "stops": "END\n\n",
    }
    shape = {"shape": "choices", "shape_text": "yes\n no \n", "continuity": "sticky", "top_k": "5"}
    await streamed(opened.http, text="and now?", model="base", **said, **shape)
    request = opened.router.requests[-1]
    assert [(turn.role, turn.text) for turn in request.turns] == [
        ("system", "Be brief."),
        ("user", "a medical question"),
        ("assistant", "an answer"),
        ("user", "and now?"),
    ]
    assert request.sampling.constraint.choices == ("yes", "no")
    assert (request.sampling.stop, request.sampling.top_k) == (("END",), 5)
    assert request.routing.continuity == "sticky"
    for bad in ({"shape": "poem"}, {"continuity": "always"}):
        status, body = await told(opened.http, "/route", text="x", **bad)
        assert (status, "must be one of" in body["error"]["message"]) == (400, True)


async def test_feedback_is_kept_where_it_is_on(
    start_web: StartWeb, http: Http, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    off = http(await start_web(feedback="off"))
    assert "data-feedback" not in (await off.get(HOME)).text
    keeping = FeedbackRecorder(FeedbackStore.in_folder(tmp_path), "texts", 90)
    browser = http(await start_web(**vars(fakes), feedback=keeping))
    assert 'data-feedback="texts"' in (await browser.get(HOME)).text
    rid = (await streamed(browser, text="a medical question"))[0][1]["response_id"]
    status, body = await told(browser, "/feedback", response_id=rid, value="1")
    assert (status, body["replaced"]) == (200, False)
    status, body = await told(browser, "/feedback", response_id=rid, value="0", corrected="Chapter XII")
    assert (status, body) == (200, {"kept": "texts", "replaced": True})
    status, body = await told(browser, "/feedback", response_id=rid, value="7")
    assert (status, body["error"]["field"]) == (400, "value")
    assert (
        "0 good, 0 bad, 1 corrected in 30 days" in (await browser.get("/console/adapters/medical/1.0.0")).text
    )


def test_a_line_says_why() -> None:
    def line(**fields: Any) -> str:
        return line_of(pb.Decision(**fields))

    one, two = pb.Vote(classifier="a", scores={"legal": 0.9, "tax": 0.2}), pb.Vote(scores={"tax": 0.6})
    sure = {
        "adapter": "adapters/legal/versions/1.0.0",
        "reason": pb.DECISION_REASON_CLASSIFIED,
        "confidence": 0.93,
    }
    assert line(**sure, votes=[one, one, pb.Vote(declined=True)]) == "classifiers agree, 0.93"
    assert line(**sure, votes=[one, one, two]) == "2 of 3 classifiers agree, 0.93"
    assert line(**sure, classifier="a") == "a is sure, 0.93"
    kept = {"continuity": "kept", "previous": "adapters/legal"}
    assert (
        line(**sure, **kept, experiment="tone", arm="new")
        == "as in the turn before, experiment tone, arm new"
    )
    assert line(**sure, votes=[one], continuity="switched", previous="base").endswith("switched from base")
    abstained = {"reason": pb.DECISION_REASON_ABSTAINED, "confidence": 0.4, "threshold": 0.6}
    assert line(**abstained) == "no adapter reaches the threshold, 0.40 of 0.60"
    assert line(reason=pb.DECISION_REASON_EXPLICIT) == "as asked for"
