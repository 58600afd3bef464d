"""Overview: the state in a word, ranges, charts, and who may see what."""

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


async def test_ranges_charts_and_adapters(opened: SimpleNamespace) -> None:
    for _ in range(6):
        await opened.http.post("/v1/chat/completions", json=asking(model="medical", max_tokens=4))
    await opened.http.post("/v1/chat/completions", json=asking(model="legal", max_tokens=4))
    await opened.http.post("/v1/chat/completions", json=asking(model="nobody"))
    for name, title in (("15m", "15 minutes"), ("7d", "7 days"), ("nonsense", "15 minutes")):
        page = (await opened.http.get(f"/console?range={name}")).text
        assert f"Requests, last {title}" in page
        assert f"Requests a minute, from {title} ago until now: answered 7, refused 1, failed 0" in page
        assert page.index(">medical</a>") < page.index(">legal</a>") < page.index("not routed")
        assert page.count('<path class="grid"') == 4


async def test_what_others_ask_is_not_told_to_who_may_not_know_of_all(roled: Roled) -> None:
    broken = ClassifierState("linear", "linear", 50, "failed", "open", 7, 3, "medical has no examples")
    state = RoutingState(classifiers=(broken,), problems=("medical.py: no such file",))
    site = await roled(adapters=["legal"], routing=lambda: state)
    page = (await site.olga.get("/console")).text
    for hidden in ("medical", 'class="tiles"', 'class="card trend', "not routed"):
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
