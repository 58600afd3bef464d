"""Overview: the state in a word, counts that lead to requests, and who may see what."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from router.extensions.console.overview import state_of
from router.routing.state import ClassifierState, RoutingState
from tests.extensions.console.conftest import Roled
from tests.server.http_helpers import Http, StartWeb, asking


def test_healthy_is_only_what_has_no_problem() -> None:
    assert state_of([], []) == ("healthy", "ok")
    assert state_of([], ["info"]) == ("healthy", "ok")
    assert state_of([], ["warn", "bad"]) == ("serving, with problems", "bad")
    assert state_of(["engine failed"], ["bad"]) == ("not ready", "bad")


async def test_counts_lead_to_the_requests(opened: SimpleNamespace) -> None:
    for model in ("medical", "medical", "nobody"):
        await opened.http.post("/v1/chat/completions", json=asking(model=model, max_tokens=4))
    page = (await opened.http.get("/console")).text
    for outcome, title, number in (("answered", "Answered", 2), ("refused", "Refused", 1)):
        link = f'<a href="/console/requests?outcome={outcome}">{title}</a></dt><dd>{number}</dd>'
        assert link in page


async def test_what_others_ask_is_not_told_to_who_may_not_know_of_all(roled: Roled) -> None:
    broken = ClassifierState("linear", "linear", 50, "failed", "open", 7, 3, "medical has no examples")
    state = RoutingState(classifiers=(broken,), problems=("medical.py: no such file",))
    site = await roled(adapters=["legal"], routing=lambda: state)
    page = (await site.olga.get("/console")).text
    for hidden in ("medical", 'class="tiles"'):
        assert hidden not in page


async def test_a_server_that_loads_says_so(start_web: StartWeb, http: Http) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    server = await start_web(startup=never, wait=False)
    answer = await http(server).get("/console")
    assert answer.status_code == 200
    assert "The base model is still loading." in answer.text
    assert "not ready" in answer.text
    assert (await http(server).get("/console/adapters")).status_code == 503
