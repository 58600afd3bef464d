"""The server's router and classifiers in this process, for adapters and requests of recipes/routing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from router.cli.adapter_folders import read_profiles
from router.cli.settings import load_settings, rule_of
from router.config import Settings
from router.extensions.calibration.offline import FixedCatalog, started_router
from router.plugins import PluginHost
from router.routing.router import Router
from router.types import (
    AdapterProfile,
    Continuity,
    Request,
    RoutingHints,
    Turn,
)

ROOT = Path(__file__).parents[1]
ROUTING = ROOT / "recipes" / "routing"
BUILDING, UNSEEN = ("company", "hospital"), ("software_vendor",)  # deployments
Went = tuple[str, str]  # the right adapter and the one that got the request, "" is the base
AUTHOR = "The requests were written by a language model; recipes/routing/README.md says how."


@asynccontextmanager
async def local_router(
    profiles: Sequence[AdapterProfile], settings: Settings | None = None
) -> AsyncIterator[Router]:
    """A router that has learned these adapters, by default with a server's defaults and no calibration."""
    rule = rule_of(settings or load_settings({"calibration": ""}))
    async with started_router(FixedCatalog(profiles), PluginHost([ROOT / "plugins"]), rule) as router:
        yield router


@asynccontextmanager
async def shipped_router() -> AsyncIterator[Router]:
    """The same with the shipped adapters, and a calibration beside them if there is one."""
    settings = load_settings({"adapters_dir": (ROOT / "adapters",)})
    async with local_router(read_profiles(settings.adapters_dir), settings) as router:
        yield router


def told(router: Router) -> str:
    """What decides, for a results page."""
    proved = "calibrated" if router.rule.calibration is not None else "not calibrated"
    return f"The shipped adapters, {proved}: threshold {router.rule.now.threshold:.2f}."


async def chosen(router: Router, turns: Sequence[Turn], continuity: Continuity = "adaptive") -> str:
    """The adapter that answers the last of these turns, "" for the base."""
    hints = RoutingHints(continuity=continuity)
    decision = await router.route(Request("0", turns=tuple(turns), routing=hints))
    return decision.adapter.name if decision.adapter else ""


async def chosen_for(router: Router, text: str) -> str:
    """The same of a request of one turn."""
    return await chosen(router, [Turn("user", text)])


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of recipes/routing."""
    return [json.loads(line) for line in (ROUTING / name).read_text(encoding="utf-8").splitlines()]


def half_of(name: str, half: str) -> list[dict[str, Any]]:
    """Those of one half, `build` or `unseen`."""
    return [row for row in rows_of(name) if row["half"] == half]


def turns_of(row: dict[str, Any]) -> list[Turn]:
    """The turns of a chat."""
    return [Turn(said["role"], said["content"]) for said in row["messages"]]


def deployment_of(name: str, more: bool = False) -> tuple[AdapterProfile, ...]:
    """A deployment's adapters with 8 examples each; with 25 where there are to be `more`."""
    profiles = read_profiles([ROUTING / name / "adapters"])
    further = rows_of(f"{name}/more_examples.jsonl") if more else []
    return tuple(
        replace(p, examples=(*p.examples, *(row["text"] for row in further if row["adapter"] == p.name)))
        for p in profiles
    )


def counted(found: Sequence[Went]) -> dict[str, int]:
    """The columns of a table that count what became of requests."""
    return {
        "requests": len(found),
        "ok": sum(right == adapter for right, adapter in found),
        "to the base": sum(bool(right) and not adapter for right, adapter in found),
        "wrong": sum(bool(adapter) and right != adapter for right, adapter in found),
    }


COUNTED = (
    "ok: requests for an adapter that it gets, and for none that the base gets. to the base: requests for an "
    "adapter that the base gets. wrong: requests that an adapter gets that is not the right one."
)
