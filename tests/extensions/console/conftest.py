"""A server with a console, and browsers without a screen: plain HTTP clients that keep cookies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from router.access.audit import AuditedCall
from tests.audited import entries
from tests.security.helpers import write_clients
from tests.server.http_helpers import Http, StartWeb

Roled = Callable[..., Awaitable[SimpleNamespace]]
ROLES = {
    "anna": ("infer", "observe", "admin"),
    "olga": ("observe",),
    "ivan": ("infer",),
}


@pytest.fixture
async def opened(start_web: StartWeb, fakes: SimpleNamespace, http: Http) -> SimpleNamespace:
    """A server without a clients file: `server`, `http`, and what stands behind it."""
    server = await start_web(**vars(fakes))
    return SimpleNamespace(server=server, http=http(server), **vars(fakes))


@pytest.fixture
def roled(start_web: StartWeb, fakes: SimpleNamespace, http: Http, tmp_path: Path) -> Roled:
    """A server with the clients of `ROLES`, with the lines `client` each: `server`, a signed-in browser for
    each, and `nobody`'s."""

    numbers = count()

    async def start(
        adapters: Sequence[str] = ("*",), *, client: str = "", **settings: Any
    ) -> SimpleNamespace:
        clients = write_clients(tmp_path, adapters, client, **ROLES)
        server = await start_web(
            **vars(fakes), clients=clients.path, audit=tmp_path / f"audit-{next(numbers)}.jsonl", **settings
        )
        browsers = {name: await signed_in(http(server), getattr(clients, name)) for name in ROLES}
        return SimpleNamespace(server=server, tokens=clients, nobody=http(server), **browsers, **vars(fakes))

    return start


async def signed_in(browser: httpx2.AsyncClient, token: str) -> httpx2.AsyncClient:
    """The browser, signed in with that token."""
    answer = await post(browser, "/console/sign-in", token=token)
    assert answer.status_code == 303
    return browser


async def audited(site: SimpleNamespace) -> list[dict[str, Any]]:
    """The lines of the audit so far."""
    await asyncio.wrap_future(site.server.audit.acted(AuditedCall("", "", "", "last", "", "")))
    return [line for line in entries(site.server.settings.audit) if line["method"] != "last"]


async def csrf(browser: httpx2.AsyncClient, path: str = "/console/sign-in") -> str:
    """The secret that forms of its pages have."""
    found = re.search(r'<meta name="csrf" content="(\w{64})">', (await browser.get(path)).text)
    assert found
    return found[1]


async def post(browser: httpx2.AsyncClient, path: str, **fields: str) -> httpx2.Response:
    """A form, sent as a page of the console sends it."""
    return await browser.post(path, data={"csrf": await csrf(browser), **fields})
