"""All pages of the console, every one a route of its own.

A page is a module with `ENTRIES` (see `site.py`), its templates, and its place in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.extensions.console import (
    activity,
    acts,
    adapter,
    adapters,
    experiment_plan,
    experiments,
    overview,
    playground,
    routing,
    session,
)
from router.extensions.console.rendering import serve_static
from router.extensions.console.site import ROOT, Console, Entry, Page, route_of
from router.server.http import Route
from router.server.policy import PROBE, Policy

MODULES = (  # as their pages stand at the side
    overview,
    playground,
    adapters,
    adapter,
    acts,
    routing,
    experiments,
    experiment_plan,
    activity,
    session,
)
ENTRIES: tuple[Entry, ...] = tuple(entry for module in MODULES for entry in module.ENTRIES)

STATIC = f"{ROOT}/static/{{name}}"
ROWS: Mapping[str, Policy] = {f"GET {STATIC}": PROBE} | {entry.route: entry.policy for entry in ENTRIES}


def routes(console: Console) -> Sequence[Route]:
    """Its pages, actions and static files."""
    return [Route("GET", STATIC, serve_static), *(route_of(console, entry) for entry in ENTRIES)]


__all__ = ["ENTRIES", "ROWS", "Console", "Page", "routes"]
