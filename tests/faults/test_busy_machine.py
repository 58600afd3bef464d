"""Two processes take the cores and 16 callers ask at once: votes come late, none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.lost_votes import busy, texts
from benchmarks.routing import adapters
from benchmarks.routing_many import FixedCatalog
from router.plugins import PluginHost
from router.routing.router import Router
from router.types import Request, RoutingHints, Turn

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
CLASSIFIERS = ("keywords", "linear", "embedding")
CALLERS = 16


@pytest.mark.parametrize("requests", [120, pytest.param(1000, marks=pytest.mark.long)])
async def test_a_busy_machine_loses_no_votes(requests: int, tmp_path: Path) -> None:
    host = PluginHost([ROOT / "plugins"], ",".join(CLASSIFIERS))
    router = Router(FixedCatalog(adapters()), host, keep=tmp_path, ready_seconds=120.0)
    await router.start()
    lost, waiting = Counter[tuple[str, str]](), iter(enumerate(texts(requests)))

    async def caller() -> None:
        for i, text in waiting:
            asked = Request(f"r{i}", turns=(Turn("user", text),), routing=RoutingHints(explain=True))
            decision = await router.route(asked)
            votes = [vote for vote in decision.votes if router.rule.now.counts(vote.classifier)]
            assert [vote.classifier for vote in votes] == list(CLASSIFIERS)
            lost.update((vote.classifier, str(vote.error)) for vote in votes if vote.error)

    try:
        assert router.flaws == []
        with busy(2):
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
        assert lost == {}
        assert router.flaws == []
    finally:
        await router.close()
