"""The console in Chromium: every page and action, with and without a role, by keyboard, without scripts.

Playwright and axe are in environments of their own (see `test_foreign_clients`); Chromium is the system's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.ports import Measured
from router.routing.state import ClassifierState, RoutingState
from router.types import AdapterRef, AdapterState
from tests.extensions.console.conftest import Roled, audited
from tests.extensions.openai.test_foreign_clients import elsewhere, node_with, output, python_with
from tests.fakes import FakeRegistry, adapter
from tests.server.http_helpers import Http, StartWeb, asking

SCRIPTS, ROOT = Path(__file__).parent / "browser", Path(__file__).parents[3]
PLAYWRIGHT, AXE = "playwright==1.65.2", "axe-core@4.14.1"
PICTURES = os.environ.get("CONSOLE_PICTURES", "-")  # a folder for pictures of all pages
MEDICAL = AdapterRef("medical", "1.0.0")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
PATHS = (
    "/console",
    "/console/requests",
    "/console/requests/1",
    "/console/requests/1/text",
    "/console/adapters",
    "/console/adapters/medical/1.0.0",
    "/console/adapters/medical/1.1.0",
    "/console/adapters/medical/1.1.0/default",
    "/console/adapters/evil/1.0.0",
    "/console/adapters/broken/1.0.0",
    "/console/sign-in",
)


async def seen_by(script: str, url: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a script saw."""
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium: apt-get install chromium")
    python = await asyncio.to_thread(python_with, PLAYWRIGHT)
    axe = await asyncio.to_thread(node_with, AXE)
    source = axe / "node_modules" / "axe-core" / "axe.min.js"
    command = (python, str(SCRIPTS / script), url, str(source), *arguments)
    seen: dict[str, Any] = json.loads((await output(command, folder)).splitlines()[-1])
    return seen


def furnish(registry: FakeRegistry) -> None:
    """As much as there is to see: a report card, a quarantined version, texts that mean ill."""
    for file in (ROOT / "adapters" / "medical").iterdir():
        if file.suffix in (".md", ".toml", ".jsonl"):
            registry.documents[MEDICAL, file.name] = file.read_bytes()
    registry.measures[MEDICAL] = Measured("exact match", (0.772, 0.72, 0.82), (0.63, 0.57, 0.69))
    registry.put(adapter("medical", "1.1.0", size_bytes=4_000_000))
    registry.put(adapter("evil", description=EVIL, gate=EVIL))
    registry.put(replace(adapter("broken"), state=AdapterState.QUARANTINED, error=f"{EVIL} " * 9))
    for number in range(30):
        registry.put(adapter(f"another-adapter-{number:02}"))


def routing() -> RoutingState:
    """With something that does not work."""
    broken = ClassifierState("linear", "linear", 50, "failed", "open", 7, 3, "it raised")
    return RoutingState(classifiers=(broken,), problems=(f"plugin {EVIL}",))


@asynccontextmanager
async def asked(site: SimpleNamespace) -> AsyncIterator[None]:
    """Requests come meanwhile."""

    async def ask() -> None:
        while True:
            body = asking(model="medical", max_tokens=8, min_tokens=8)
            await site.http.post("/v1/chat/completions", json=body)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@elsewhere
async def test_pages(start_web: StartWeb, http: Http, fakes: SimpleNamespace, tmp_path: Path) -> None:
    site = SimpleNamespace(http=http(server := await start_web(**vars(fakes), routing=routing)))
    furnish(fakes.registry)
    async with asked(site):
        seen = await seen_by("pages.py", f"http://{server.http_address}", tmp_path, PICTURES, *PATHS)
    assert not seen["wrong"], json.dumps(seen["wrong"], indent=1)


@elsewhere
async def test_live_parts(opened: SimpleNamespace, tmp_path: Path) -> None:
    async with asked(opened):
        seen = await seen_by("live.py", f"http://{opened.server.http_address}", tmp_path)
    assert seen["wrong"] == []
    assert seen["changed"][0] != seen["changed"][1]
    assert seen["state"] == "healthy"
    assert seen["times"]
    assert all(text.endswith(" GMT+9") for text in seen["times"])
    assert seen["themes"] == ["dark", "dark"]
    assert seen["hidden"] == 0  # no page in the background asks
    assert seen["again"] >= 1
    assert "does not answer" in seen["lost"]
    assert not seen["healthy"]  # while it is not known


@elsewhere
async def test_signing_in_and_every_action(roled: Roled, tmp_path: Path) -> None:
    site = await roled()
    furnish(site.registry)
    tokens = (site.tokens.anna, site.tokens.olga)
    seen = await seen_by("acts.py", f"http://{site.server.http_address}", tmp_path, *tokens)
    assert seen["wrong"] == []
    assert seen["axe"] == []
    assert "not valid here" in seen["refused"]
    assert "anna" in seen["who"]
    assert seen["readable"] == ""  # no script sees the token
    assert {title: inside for title, (inside, _) in seen["done"].items()} == dict.fromkeys(seen["done"], True)
    assert len(seen["done"]) == 6
    assert seen["done"]["Make default"][1] == "It is the default version now."
    assert (seen["escaped"], seen["cancelled"], seen["away"]) == (True, True, True)
    assert sum(line["code"] == "OK" for line in await audited(site)) >= 6
    assert len(seen["plain"]) == 3
    off, reason, links, nav = seen["observer"]
    assert off == 0  # what cannot be done is not there
    assert "needs the role admin" in reason
    assert links == 0
    assert "Playground" not in nav
