"""Overview: the server's state, what needs attention, the requests of the last minutes, and what runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prometheus_client import ProcessCollector

from router import __version__
from router.access.clients import Role
from router.extensions.console.checks import BAD, check, free
from router.extensions.console.request_log import LATELY, TONES, Outcome
from router.extensions.console.site import Entry, Page, Visit
from router.server.admission import ServerPhase
from router.server.policy import Policy

OVERVIEW = Policy(Role.OBSERVE)
PROCESS = ProcessCollector(registry=None)


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    server = visit.console.server
    loading = server.health.phase is ServerPhase.LOADING
    return {
        **await live(visit),
        "base": None if loading else server.engine.info,
        "version": __version__,
        "settings": visit.console.settings,
    }


async def live(visit: Visit) -> dict[str, Any]:
    """What changes while one looks."""
    console, server = visit.console, visit.console.server
    everything = visit.client.adapters.everything
    audit = visit.console.settings.audit
    folders = (server.state_dir, *([audit.parent] if audit is not None else []))
    groups = check(visit, await asyncio.to_thread(free, folders))
    counts: Counter[Outcome] = Counter()
    for (outcome, _), number in console.requests.lately().items():
        counts[outcome] += number
    return {
        "state": state_of(server.health.reasons, [one.tone for one in groups]),
        "now": time.time(),
        "uptime": time.time() - console.started,
        "groups": groups,
        "everything": everything,
        "minutes": LATELY,
        "outcomes": [(one.value, TONES[one], counts[one]) for one in Outcome],
        "total": counts.total(),
        "status": server.engine.status(),
        "resident": resident() if everything else 0.0,
    }


def state_of(reasons: Sequence[str], tones: Sequence[str]) -> tuple[str, str]:
    """The server in one word, and its tone."""
    if reasons:
        return "not ready", BAD
    if BAD in tones:
        return "serving, with problems", BAD
    if "warn" in tones:
        return "serving, with warnings", "warn"
    return "healthy", "ok"


def resident() -> float:
    """Bytes of memory of this process; 0 where the system does not say."""
    found = (one.value for family in PROCESS.collect() for one in family.samples if "resident" in one.name)
    return next(found, 0.0)


ENTRIES: tuple[Entry, ...] = (
    Page("", OVERVIEW, show, "overview.html", "Overview", nav="Overview"),
    Page("/overview/live", OVERVIEW, live, "overview_live.html"),
)
