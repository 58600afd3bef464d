"""Playground, routing and experiments in Chromium."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.extensions.console.test_browser import PICTURES, seen_by
from tests.extensions.console.trials import draft, routing, trial
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.lab import experimenting
from tests.extensions.openai.test_foreign_clients import elsewhere
from tests.server.helpers import Connect
from tests.server.http_helpers import StartWeb

PATHS = (
    "/console/playground",
    "/console/routing",
    "/console/experiments",
    "/console/experiments/trial",
    "/console/experiments/too-early",
    "/console/experiments/a-draft",
    "/console/new-experiment?control=medical@1.0.0&treatment=medical@1.1.0",
)


@pytest.fixture
async def site(
    fakes: SimpleNamespace, start_web: StartWeb, connect: Connect, tmp_path: Path
) -> AsyncIterator[SimpleNamespace]:
    """A server with all that there is to see: its `url`."""
    store = MemoryStore()
    trial(store)
    trial(store, "too-early", 40, (0.5, 0.5))
    draft(store)
    started = partial(start_web, feedback="texts", routing=routing)
    async with experimenting(store, fakes, started, connect) as stubs:
        fakes.engine.step_seconds = 0.02
        yield SimpleNamespace(**vars(stubs), url=f"http://{stubs.app.http_address}")


@elsewhere
async def test_pages(site: SimpleNamespace, tmp_path: Path) -> None:
    seen = await seen_by("pages.py", site.url, tmp_path, PICTURES, *PATHS)
    assert not seen["wrong"], json.dumps(seen["wrong"], indent=1)


@elsewhere
async def test_playground(site: SimpleNamespace, tmp_path: Path) -> None:
    seen = await seen_by("playground.py", site.url, tmp_path, "-")
    for name in ("axe", "axe_many", "wide", "complaints", "narrow"):
        assert seen[name] == [], name
    (one,) = seen["one"]
    digest = site.registry.get("medical").digest
    assert one["from"] == "medical@1.0.0 answered: words is sure, 0.90"
    assert (one["digest"], one["badge"], one["busy"]) == (digest, "done", "false")
    assert (one["votes"], one["bars"], one["folded"]) == (1, 1, True)
    assert one["buttons"] == ["Copy", "Good", "Bad"]
    assert "<script>alert(1)</script>" in one["answer"]  # as text
    assert "tokens/s" in one["numbers"]
    assert seen["corrected"] == "Kept: texts."
    assert seen["good"] == "Changed: texts."
    assert seen["copied"] == one["answer"]
    (second,) = seen["second"]
    assert (seen["turns"], seen["cleared"]) == (2, 0)
    assert "and in one word?" in second["answer"]  # the fake engine repeats what it gets
    assert "medical" in second["answer"]
    assert seen["decided"][0]["from"] == "legal@2.0.0 would answer: words is sure, 0.90"
    assert seen["decided"][0]["answer"] == ""
    digests = [site.registry.get("medical", version).digest for version in ("1.0.0", "1.1.0")]
    expected = [*digests, "", site.registry.get("legal").digest]
    assert [column["digest"] for column in seen["many"]] == expected
    for column, of in zip(seen["many"], expected, strict=True):  # each names the adapter that answered
        assert column["answer"].startswith(f"[{of[:8] or 'base'}]")
    assert "seed" in seen["state"]
    stopped, live = seen["stopped"]
    assert (stopped["badge"], "tokens" in live) == ("stopped", True)
    assert len(stopped["answer"]) < 3000
    assert seen["wrong_field"] == [
        "must be a number, got 'warm'",
        "temperature",
        "one",
        "true",
        "must not be empty",
        True,  # what was not sent is no turn
    ]
    assert "nobody" in seen["nobody"]
    assert (seen["cut"]["badge"], "cut off" in seen["cut"]["notices"][0]) == ("cut off", True)
    assert seen["in_sight"] == [True, True]
    assert "needs JavaScript" in seen["plain"]


@elsewhere
async def test_experiments_and_thresholds(site: SimpleNamespace, tmp_path: Path) -> None:
    seen = await seen_by("experiments.py", site.url, tmp_path)
    life = seen["life"]
    assert set(life["errors"]) == {"name", "plan"}
    assert "planned_units: must be" in life["errors"]["plan"]
    assert life["kept"]["plan"].endswith("</script>'\nplanned_units = 0")
    assert "0.5 of units: legal@2.0.0 (control)" in life["size"]
    assert life["draft"][0].endswith("/console/experiments/tone")
    assert life["draft"][1:] == ["tone", "draft"]
    assert (life["running"], life["stopped"]) == ("running", ["stopped", True])
    assert seen["complaints"] == []
    assert seen["wrong"] == []
    assert seen["verdict"].startswith("PROMOTE new")
    assert "new promoted" in seen["promoted"]
    assert "promoted" not in seen["rolled_back"]
    assert "roll back" in seen["history"]
    assert (seen["ranges"], seen["still_open"], seen["no_promotion"]) == (3, 1, 0)
    assert "it cannot run" in seen["plain"]  # another one has its units
    assert 10 <= seen["plain_rows"] <= 11
