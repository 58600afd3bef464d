"""The console: pages for operators, rendered here, every one a call of the chain.

A page is a module with `ENTRIES` (see `site.py`), its templates, and its place in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from router.web.console import (
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
from router.web.console.rendering import serve_static
from router.web.console.site import ROOT, Console, Endpoint, Entry, Page

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


class _Static:
    """A class, since Starlette takes a function for something else."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await serve_static(scope, receive, send)


def routes(console: Console) -> Sequence[BaseRoute]:
    """Where its pages, actions and static files are."""
    return [
        Route(ROOT + "/static/{name}", _Static(), methods=["GET"]),
        *(Route(ROOT + entry.path, Endpoint(console, entry), methods=[entry.verb]) for entry in ENTRIES),
    ]


__all__ = ["ENTRIES", "Console", "Page", "routes"]
