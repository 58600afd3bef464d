"""Adapters and plugins that come and go while requests are routed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.plugins import PluginHost
from router.routing import Classifier, Scores
from router.routing.router import Router
from router.types import AdapterProfile, Reason

SHOUT = """
from router import hookimpl
from router.routing import Classifier, Scores

class Shout(Classifier):
    name = "shout"
    def classify_batch(self, requests):
        return [Scores({"legal": 1.0}) if r.text.isupper() else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Shout(), priority=100, timeout_ms=20)
"""


class Echo(Classifier):
    """Chooses the last adapter it was fitted to."""

    name = "echo"

    def __init__(self) -> None:
        self._last, self.fits = "", 0
        self.gate = threading.Event()
        self.gate.set()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.fits += 1
        self.gate.wait(10)
        self._last = adapters[-1].name if adapters else ""

    def classify_batch(self, requests: Any) -> Any:
        return [Scores({self._last: 1.0}) if self._last else None for _ in requests]


@pytest.fixture
async def opened():
    routers: list[Router] = []

    async def open_router(*args: Any) -> Router:
        routers.append(Router(*args))
        await routers[-1].start()
        return routers[-1]

    yield open_router
    for router in routers:
        await router.close()


async def until(router: Router, request: Any, name: str) -> None:
    deadline = time.monotonic() + 5
    while (d := await router.route(request)).adapter is None or d.adapter.name != name:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_the_ten_line_plugin_votes_on_the_next_request(kit: Any, opened: Any, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    router = await opened(kit.catalog([kit.medical, kit.legal]), PluginHost([folder]))
    assert (await router.route(kit.asking("SUE THEM"))).reason is Reason.FALLBACK
    (folder / "shout.py").write_text(SHOUT)
    decision = await router.route(kit.asking("SUE THEM"))
    assert (decision.adapter.name, decision.classifier) == ("legal", "shout")
    assert (await router.route(kit.asking("sue them"))).reason is Reason.ABSTAINED
    (folder / "shout.py").unlink()
    assert (await router.route(kit.asking("SUE THEM"))).reason is Reason.FALLBACK


async def test_a_plugin_that_must_learn_first_votes_on_the_next_request_too(
    kit: Any, opened: Any, tmp_path: Path
) -> None:
    router = await opened(kit.catalog([kit.legal]), PluginHost([tmp_path]))
    fitting = SHOUT.replace(
        "    def classify", "    def fit(self, adapters): self.n = len(adapters)\n    def classify"
    )
    (tmp_path / "shout.py").write_text(fitting)
    assert (await router.route(kit.asking("SUE"))).adapter.name == "legal"


async def test_a_changed_plugin_is_used_soon(kit: Any, opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "shout.py"
    path.write_text(SHOUT)
    router = await opened(kit.catalog([kit.medical, kit.legal]), PluginHost([tmp_path]))
    assert (await router.route(kit.asking("A"))).adapter.name == "legal"
    path.write_text(SHOUT.replace("legal", "medical"))
    async with asyncio.timeout(3):
        await until(router, kit.asking("A"), "medical")


async def test_a_new_adapter_is_learned_before_it_is_used(kit: Any, opened: Any) -> None:
    catalog, echo = kit.catalog([kit.medical]), Echo()
    router = await opened(catalog, kit.host(kit.registered(echo)))
    assert (await router.route(kit.asking())).adapter.name == "medical"
    catalog.become(kit.medical, kit.translation)
    await until(router, kit.asking(), "translation")
    catalog.become()
    assert (await router.route(kit.asking())).reason is Reason.FALLBACK


async def test_a_slow_fit_does_not_hold_up_requests(kit: Any, opened: Any) -> None:
    catalog, echo = kit.catalog([kit.medical]), Echo()
    router = await opened(catalog, kit.host(kit.registered(echo)))
    echo.gate.clear()
    catalog.become(kit.medical, kit.legal)
    await kit.eventually(lambda: echo.fits == 2)
    assert (await router.route(kit.asking())).adapter.name == "medical"
    echo.gate.set()
    await until(router, kit.asking(), "legal")


async def test_a_reloaded_classifier_answers_with_its_old_self_until_it_has_learned(
    kit: Any, opened: Any
) -> None:
    old, slow = Echo(), Echo()
    slow.gate.clear()
    host = kit.host(kit.registered(old))
    router = await opened(kit.catalog([kit.medical]), host)
    successor = kit.registered(slow)
    host.become(successor)
    assert (await router.route(kit.asking())).reason is Reason.CLASSIFIED
    assert successor.health.calls == 0
    slow.gate.set()
    await kit.eventually(lambda: successor.health.state == "ready")
    assert (await router.route(kit.asking())).reason is Reason.CLASSIFIED
    assert successor.health.calls == 1


async def test_hints_know_a_new_adapter_at_once(kit: Any, opened: Any) -> None:
    catalog = kit.catalog([kit.medical])
    echo = Echo()
    router = await opened(catalog, kit.host(kit.registered(echo)))
    echo.gate.clear()
    catalog.become(kit.medical, kit.translation)
    decision = await router.route(kit.asking(task="translation"))
    assert (decision.adapter.name, decision.reason) == ("translation", Reason.HINT)
    echo.gate.set()
