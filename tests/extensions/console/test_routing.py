"""Routing: what decides and how it does, for who may know of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from router.extensions.console.routing import when
from router.routing.state import ClassifierState, RoutingState
from router.types import Vote
from tests.extensions.console.conftest import signed_in
from tests.extensions.console.test_tested import calibrated
from tests.security.helpers import write_clients
from tests.server.http_helpers import Http, StartWeb

PAGE = "/console/routing"
WORDS = ClassifierState("words", "words.py", 10, "ready", "open", 12, 2, "raised: <b>boom</b>")


async def test_without_anything_it_says_so(opened: SimpleNamespace) -> None:
    page = (await opened.http.get(PAGE)).text
    for words in (
        "no calibration",
        "50.0 % confidence decides",
        "<dd>the settings</dd>",
        "No request has been answered",
        "No classifier",
    ):
        assert words in page


async def test_decisions_and_times_come_from_the_metrics(opened: SimpleNamespace) -> None:
    opened.router.on_vote = opened.server.metrics.vote
    for text in ("a medical question", "a legal one", "what?"):
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        assert (await opened.http.post("/v1/chat/completions", json=body)).status_code == 200
    opened.server.metrics.vote(Vote("words", {"legal": 0.9}, latency=0.02))
    page = (await opened.http.get(PAGE)).text
    assert "66.7 %" in page
    assert "No classifier was sure: the base answered" in page


async def test_calibration_and_classifiers(start_web: StartWeb, http: Http, fakes: SimpleNamespace) -> None:
    server = await start_web(**vars(fakes), routing=lambda: state)
    state = RoutingState(0.7, calibrated(), ("medical",), (WORDS,))
    for latency in (0.02, 0.04):
        server.metrics.vote(Vote("words", {"legal": 0.9}, latency=latency))
    page = (await http(server).get(PAGE)).text
    for words in (
        "at most 5.0 % errors",
        "at most 5.0 % of requests for no adapter routed",
        "70.0 % confidence",
        "on 100 requests and 40 for no adapter",
        "medical: routed at the same threshold",
        "boom&lt;/b&gt;",
        "<dd>the calibration</dd>",
        '70.0 % <span class="badge info">in force</span></th>',
        "1 of 70<",
        ">30 ms<",
    ):
        assert words in page, words
    assert page.count("in force</span>") == 1
    state = RoutingState(0.7, calibrated({}, strange_target=None))
    page = (await http(server).get(PAGE)).text
    assert "nothing about requests for no adapter" in page
    assert "What another threshold would do" not in page


async def test_names_are_for_those_who_may_know_them(
    start_web: StartWeb, http: Http, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path, ["medical"], olga=("observe",))
    of = calibrated(adapters=("legal", "medical"))
    state = RoutingState(0.7, of, ("legal-v2",), (WORDS,), ("legal.py: broken",))
    server = await start_web(**vars(fakes), routing=lambda: state, clients=clients.path)
    page = (await (await signed_in(http(server), clients.olga)).get(PAGE)).text
    assert "<dd>medical</dd>" in page
    assert "legal" not in page
    assert "boom" not in page


def test_times_of_files() -> None:
    assert when("2026-11-27T00:00:00+00:00") == when("2026-11-27T00:00:00")
    assert when("yesterday") is None
