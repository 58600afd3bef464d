"""Two processes take the cores and 16 callers ask at once: votes come late, none is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.local_router import ROOT, rows_of
from router.cli.adapter_folders import read_profiles
from router.extensions.calibration.offline import FixedCatalog
from router.plugins import PluginHost
from router.routing.router import Router
from router.types import Request, RoutingHints, Turn

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]
CALLERS = 16


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def texts(count: int) -> list[str]:
    """Labelled requests of the repository, each a little different when it comes again."""
    rows = rows_of("dev.jsonl")
    return [f"{rows[i % len(rows)]['text']} ({i})" for i in range(count)]


@pytest.mark.parametrize("requests", [120, pytest.param(1000, marks=pytest.mark.long)])
async def test_a_busy_machine_loses_no_votes(requests: int, tmp_path: Path) -> None:
    host = PluginHost([ROOT / "plugins"], "examples")
    router = Router(FixedCatalog(read_profiles([ROOT / "adapters"])), host, keep=tmp_path)
    await router.start()
    lost, waiting = Counter[tuple[str, str]](), iter(enumerate(texts(requests)))

    async def caller() -> None:
        for i, text in waiting:
            asked = Request(f"r{i}", turns=(Turn("user", text),), routing=RoutingHints(explain=True))
            decision = await router.route(asked)
            assert [vote.classifier for vote in decision.votes] == ["examples"]
            lost.update((vote.classifier, str(vote.error)) for vote in decision.votes if vote.error)

    try:
        assert router.flaws == []
        with busy(2):
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
        assert lost == {}
        assert router.flaws == []
    finally:
        await router.close()
