"""The routes of the HTTP address itself: `/` for people and programs, `/health` and `/version`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from router import __version__
from router.access.clients import Role
from router.server.health import ServerHealth
from router.server.http import HttpCall, Reply, Route
from router.server.policy import PROBE, Policy

NAME = "lora-router"
SUMMARY = "One base model, and the LoRA adapter that each request needs."
ROWS: dict[str, Policy] = {"GET /": PROBE, "GET /health": PROBE, "GET /version": Policy(Role.INFER)}


def own_routes(health: ServerHealth, others: Sequence[Route]) -> Sequence[Route]:
    """All of them, less those that `others` have."""
    own = (
        Route("GET", "/health", partial(healthy, health), title="health: whether requests are answered"),
        Route("GET", "/version", version, title="version of this server"),
    )
    links = {re.split(r"\W", route.title)[0]: route.path for route in (*others, *own) if route.title}
    site = next((route.path for route in others if route.title and route.guarded), "")
    known = {route.name for route in others}
    first = Route("GET", "/", partial(home, health, links, site))
    return [route for route in (first, *own) if route.name not in known]


async def home(
    health: ServerHealth, links: Mapping[str, str], site: str, _: None, call: HttpCall
) -> Reply | Mapping[str, Any]:
    """What is here; a browser is sent to the site for people, where there is one."""
    if site and "text/html" in call.header("accept"):
        return Reply(status=303, headers={"location": site, "vary": "accept"})
    return {"name": NAME, "summary": SUMMARY, "status": _status(health), "links": links}


async def healthy(health: ServerHealth, _: None, call: HttpCall) -> Reply:
    """200 while requests are answered, else 503. The page of probes has the reasons: these may be secret."""
    body = json.dumps({"status": _status(health)}).encode()
    return Reply(body, status=200 if health.ready else 503)


async def version(_: None, call: HttpCall) -> Mapping[str, Any]:
    """As other servers have it."""
    return {"version": __version__}


def _status(health: ServerHealth) -> str:
    """`ok`, or what the server does instead."""
    if health.ready:
        return "ok"
    phase = health.phase.name.lower()
    return phase if phase in ("loading", "draining") else "failing"
