"""Overview: what is so now, and columns for the charts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from tests.web.conftest import Http, StartWeb


async def test_columns_grow_by_what_is_new(opened: SimpleNamespace) -> None:
    console = opened.http
    columns = (await console.get("/console/overview/series?after=nonsense")).json()
    assert {"time", "requests", "first_p95", "resident_bytes"} <= set(columns)
    assert len({len(column) for column in columns.values()}) == 1


async def test_a_server_that_loads_says_so(start_web: StartWeb, http: Http) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    server = await start_web(startup=never, wait=False)
    answer = await http(server).get("/console")
    assert answer.status_code == 200
    assert "still loading" in answer.text
    assert (await http(server).get("/console/adapters")).status_code == 503
