"""All pages of the console, every one a route of its own; and signing in and out.

A page is a module with `ENTRIES` (see `site.py`), its templates, and its place in `MODULES`. The browser
keeps a session's id in a cookie that scripts cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.errors import FieldViolation, InvalidRequest, NotFound
from router.extensions.console import (
    adapters,
    experiment,
    experiment_plan,
    experiments,
    overview,
    playground,
    requests,
    routing,
)
from router.extensions.console.rendering import serve_static
from router.extensions.console.site import (
    ROOT,
    SIGN_IN,
    Action,
    Console,
    Entry,
    Page,
    PageReply,
    Visit,
    redirect,
    route_of,
)
from router.server.http import Route
from router.server.policy import PROBE, Policy

MOST_TOKEN = 8 << 10  # characters, as in a header


async def sign_in_form(visit: Visit) -> dict[str, object]:
    """The form."""
    return {"next": inside(visit.query.get("next", "")), "message": "", "missing": True, "nav": []}


async def sign_in(visit: Visit) -> PageReply:
    """Check the token, and begin a session. Raises InvalidRequest, Unauthenticated."""
    token = visit.form.get("token", "").strip()
    if not token or len(token) > MOST_TOKEN or not token.isascii() or not token.isprintable():
        raise InvalidRequest([FieldViolation("token", "must be there, as `lora-router clients new` gave it")])
    await visit.console.interceptors.known(token)
    cookie = visit.console.signed_in(visit.call, token)
    return redirect(inside(visit.form.get("next", "")), **{"set-cookie": cookie})


async def sign_out(visit: Visit) -> PageReply:
    """End the session."""
    visit.console.sessions.end(visit.call.session)
    return redirect(ROOT + "/sign-in", **{"set-cookie": visit.console.forgotten(visit.call)})


async def nothing(visit: Visit) -> PageReply:
    """Any other path below /console. Raises NotFound."""
    if not visit.path("rest"):
        return redirect(ROOT)
    raise NotFound("page", visit.call.path)


def inside(path: str) -> str:
    """The path if it leads into the console, else its first page.

    >>> inside("/console/adapters"), inside("//evil.example"), inside("/console/../x")
    ('/console/adapters', '/console', '/console')
    """
    plain = path.isascii() and path.isprintable() and not set(path) & set("\\?#:") and ".." not in path
    within = path == ROOT or path.startswith(ROOT + "/")
    return path if plain and within and not path.startswith(ROOT + "/sign-") else ROOT


SESSION_ENTRIES: tuple[Entry, ...] = (
    Page("/sign-in", SIGN_IN, sign_in_form, "sign_in.html", "Sign in"),
    Action("/sign-in", SIGN_IN, sign_in),
    Action("/sign-out", SIGN_IN, sign_out),
    Page("/{rest:path}", SIGN_IN, nothing),
)


MODULES = (  # as their pages stand at the side
    overview,
    requests,
    adapters,
    routing,
    experiments,
    experiment,
    experiment_plan,
    playground,
)
ENTRIES: tuple[Entry, ...] = tuple(entry for module in MODULES for entry in module.ENTRIES) + SESSION_ENTRIES

STATIC = f"{ROOT}/static/{{name}}"


def routes(console: Console) -> Sequence[Route]:
    """Its pages, actions and static files."""
    return [Route("GET", STATIC, serve_static), *(route_of(console, entry) for entry in ENTRIES)]


def rows(console: Console) -> Mapping[str, Policy]:
    """The policies of these: a page of a method has the method's."""
    return {f"GET {STATIC}": PROBE} | {entry.route: console.policy(entry.method) for entry in ENTRIES}
