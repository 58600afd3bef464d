"""Requests: filtered, each with its decision; texts for administrators alone, and each look on record."""

from __future__ import annotations

import re
from types import SimpleNamespace

from router.feedback.recorder import FeedbackRecorder, FeedbackRequest
from tests.extensions.console.conftest import Roled, audited
from tests.server.http_helpers import asking

HOME = "/console/requests"
EVIL = "<script>alert(1)</script>"


def numbers(page: str) -> list[int]:
    """Those of the requests in a list."""
    return [int(number) for number in re.findall(rf'href="{HOME}/(\d+)"', page)]


async def ask(http, model: str = "medical", text: str = "hello", **headers: str) -> str:  # type: ignore[no-untyped-def]
    body = asking(model=model, max_tokens=4) | {"messages": [{"role": "user", "content": text}]}
    answer = await http.post("/v1/chat/completions", json=body, headers=headers)
    return str(answer.headers.get("x-router-response-id", ""))


async def test_refused_ones_first_and_filters(opened: SimpleNamespace) -> None:
    assert "No request since the server started" in (await opened.http.get(HOME)).text
    for model in ("medical", "nobody", "legal", "auto"):
        await ask(opened.http, model)
    assert numbers((await opened.http.get(HOME)).text) == [2, 4, 3, 1]
    for query, expected in (
        ("outcome=refused", [2]),
        ("outcome=answered", [4, 3, 1]),
        ("code=ADAPTER_NOT_FOUND", [2]),
        ("adapter=legal", [3]),
        ("client=127.0.0.1&adapter=medical", [1]),
        ("client=nobody", []),
        ("feedback=bad", []),
    ):
        page = (await opened.http.get(f"{HOME}?{query}")).text
        assert numbers(page) == expected, query
    assert (await opened.http.get(f"{HOME}?page=0")).status_code == 400


async def test_long_lists_have_pages(opened: SimpleNamespace) -> None:
    for _ in range(42):
        await ask(opened.http, "nobody")
    first = (await opened.http.get(f"{HOME}?outcome=refused")).text
    assert numbers(first) == list(range(42, 2, -1))
    more = re.search(r'href="([^"]+)">Next page', first)
    assert more
    assert numbers((await opened.http.get(more[1].replace("&amp;", "&"))).text) == [2, 1]


async def test_a_request_shows_its_decision_and_times(opened: SimpleNamespace) -> None:
    await ask(opened.http, "auto", "a medical question")
    await ask(opened.http, "nobody")
    page = (await opened.http.get(f"{HOME}/1")).text
    for words in (
        "medical@1.0.0",
        "POST /v1/chat/completions",
        "A classifier is sure enough.",
        "First token",
    ):
        assert words in page, words
    refused = (await opened.http.get(f"{HOME}/2")).text
    assert "It ended before an adapter was chosen" in refused
    for number in ("3", "0", "x"):
        assert (await opened.http.get(f"{HOME}/{number}")).status_code == 404


async def test_texts_and_feedback_are_for_administrators(roled: Roled) -> None:
    site = await roled(client='feedback = "texts"', feedback="texts")
    token = {"authorization": f"Bearer {site.tokens.ivan}"}
    answer = await ask(site.nobody, "medical", f"Which chapter? {EVIL}", **token)
    await ask(site.nobody, "medical", "hello", **token)
    ivan = await site.server.interceptors.known(site.tokens.ivan)
    said = FeedbackRequest(
        answer, "corrected", corrected="Chapter XII", comment="of the skin", should_have_been="legal"
    )
    await site.server.part(FeedbackRecorder).record(said, ivan)
    listed = (await site.olga.get(HOME)).text
    assert (numbers(listed), "corrected</td>" in listed) == ([2, 1], True)
    assert numbers((await site.olga.get(f"{HOME}?feedback=corrected")).text) == [1]
    page = (await site.olga.get(f"{HOME}/1")).text
    assert ("needs the role admin" in page, "Which chapter" in page) == (True, False)
    assert (await site.olga.get(f"{HOME}/1/text")).status_code == 403
    assert "Which chapter" not in (await site.anna.get(f"{HOME}/1")).text
    text = (await site.anna.get(f"{HOME}/1/text")).text
    for words in (
        "Which chapter?",
        "&lt;script&gt;",
        "Chapter XII",
        "of the skin",
        '<dd class="text">legal<',
    ):
        assert words in text, words
    assert EVIL not in text
    lines = [(line["client"], line["code"], line.get("resource", "")) for line in await audited(site)]
    assert lines == [("olga", "PERMISSION_DENIED", ""), ("anna", "OK", answer)]


async def test_without_consent_no_text_is_there(opened: SimpleNamespace) -> None:
    await ask(opened.http, "medical", "a secret")
    page = (await opened.http.get(f"{HOME}/1/text")).text
    assert ("None is kept" in page, "a secret" in page) == (True, False)


async def test_a_client_with_some_adapters_sees_its_own_requests(roled: Roled) -> None:
    site = await roled(adapters=["legal"])
    await ask(site.nobody, "legal", authorization=f"Bearer {site.tokens.ivan}")
    await ask(site.nobody, "legal", authorization=f"Bearer {site.tokens.anna}")
    assert numbers((await site.anna.get(HOME)).text) == [2]
    assert (await site.anna.get(f"{HOME}/1")).status_code == 404
    assert numbers((await site.olga.get(HOME)).text) == []
