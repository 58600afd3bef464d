"""The routes of the HTTP address itself: `/` for people and programs, `/health` and `/version`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from string import Template
from typing import Any

from router import __version__
from router.access.clients import Role
from router.server.health import ServerHealth
from router.server.http import HttpCall, Reply, Route
from router.server.policy import PROBE, Policy

NAME = "lora-router"
SUMMARY = "One base model, and the LoRA adapter that each request needs."
ROWS: dict[str, Policy] = {"GET /": PROBE, "GET /health": PROBE, "GET /version": Policy(Role.INFER)}
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
pre { overflow-x: auto; padding: .8rem; border: 1px solid; border-radius: .4rem }
td { padding: .2rem 1.2rem .2rem 0; vertical-align: top }
"""
POLICY = (
    "default-src 'none'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$name</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$name</h1>
<p>$summary</p>
<p>$state</p>
<table>
$rows
</table>
<h2>Ask</h2>
<pre>curl -s $url/v1/chat/completions -H 'Content-Type: application/json'$token \\
  -d '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'</pre>
<p>Clients of OpenAI's API take <code>$url/v1</code> as their base URL.
<code>lora-router chat</code> talks to this server in a terminal.</p>
</main>
</body>
</html>
""")


def own_routes(health: ServerHealth, others: Sequence[Route], tokens: bool) -> Sequence[Route]:
    """All of them, less those that `others` have. `tokens`: callers need one."""
    known, links = {route.name for route in others}, dict[str, str]()
    own = (
        Route("GET", "/", partial(home, health, links, tokens)),
        Route("GET", "/health", partial(healthy, health), title="health: whether requests are answered"),
        Route("GET", "/version", version, title="version of this server"),
    )
    links |= {route.path: route.title for route in (*others, *own) if route.title}
    return [route for route in own if route.name not in known]


async def home(
    health: ServerHealth, links: Mapping[str, str], tokens: bool, _: None, call: HttpCall
) -> Reply | Mapping[str, Any]:
    """A page for a browser, else JSON with the links."""
    if "text/html" not in call.header("accept"):
        paths = {re.split(r"\W", title)[0]: path for path, title in links.items()}
        return {"name": NAME, "summary": SUMMARY, "status": _status(health), "links": paths}
    host = call.header("host")
    page = PAGE.substitute(
        name=NAME,
        style=STYLE,
        summary=SUMMARY,
        state="Requests are answered." if health.ready else f"No request is answered yet: {_status(health)}.",
        rows="\n".join(
            f'<tr><td><a href="{path}">{path}</a></td><td>{text}</td></tr>' for path, text in links.items()
        ),
        url=escape(f"{call.scope.get('scheme', 'http')}://{host}"),
        token=" \\\n  -H 'Authorization: Bearer TOKEN'" if tokens else "",
    )
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "vary": "accept"}
    return Reply(page.encode(), "text/html; charset=utf-8", headers=headers)


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
