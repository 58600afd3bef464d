"""Overview: what is so now, and columns for the charts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from router.routing.state import ClassifierState, RoutingState
from tests.extensions.console.conftest import Roled
from tests.server.http_helpers import Http, StartWeb


async def test_columns_grow_by_what_is_new(opened: SimpleNamespace) -> None:
    console = opened.http
    columns = (await console.get("/console/overview/series?after=nonsense")).json()
    assert {"time", "requests", "first_p95", "resident_bytes"} <= set(columns)
    assert len({len(column) for column in columns.values()}) == 1


async def test_what_others_ask_is_not_told_to_who_may_not_know_of_all(roled: Roled) -> None:
    broken = ClassifierState("linear", "linear", 50, "failed", "open", 7, 3, "medical has no examples")
    state = RoutingState("stale: medical has changed", (broken,), ("medical.py: no such file",))
    site = await roled(adapters=["legal"], routing=lambda: state)
    page = (await site.olga.get("/console")).text
    assert "linear" in page
    assert "stale" in page
    assert "medical" not in page
    assert 'class="tiles"' not in page
    assert "chart-grid" not in page
    assert (await site.olga.get("/console/overview/series")).status_code == 403


async def test_what_decides_is_told(start_web: StartWeb, http: Http) -> None:
    off = ClassifierState("llm", "llm", 1, "off", "closed", 0, 0)
    broken = ClassifierState("linear", "linear", 50, "failed", "open", 7, 3, "cannot read /srv/secret/file")
    state = RoutingState("stale: adapter medical has changed", (off, broken), ("x: <i>",))
    page = (await http(await start_web(routing=lambda: state)).get("/console")).text
    assert page.index("linear") < page.index("llm")
    for text in ("breaker open", "adapter medical has changed", "x: &lt;i&gt;", "cannot read [path]"):
        assert text in page
    assert "/srv/secret" not in page


async def test_a_server_that_loads_says_so(start_web: StartWeb, http: Http) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    server = await start_web(startup=never, wait=False)
    answer = await http(server).get("/console")
    assert answer.status_code == 200
    assert "still loading" in answer.text
    assert (await http(server).get("/console/adapters")).status_code == 503
