"""Activity: administrative calls and refused ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from router.access.audit import RecentAuditEntry as Line
from router.access.clients import Role
from router.extensions.console.site import Entry, Page, Visit
from router.server.policy import Policy

ACTIVITY = Policy(Role.ADMIN, views=True)
PAGE_SIZE = 100
KINDS = {"": "all", "acts": "actions", "failed": "failed actions", "refusals": "refused calls"}


async def show(visit: Visit) -> dict[str, Any]:
    """The newest first."""
    query = visit.query
    filters = {name: query.get(name, "").strip() for name in ("who", "what", "kind")}
    before = query.get("before", "")
    limit = int(before) if before.isascii() and before.isdecimal() and len(before) < 16 else None
    found = list(islice(matching(lines_for(visit), limit, **filters), PAGE_SIZE + 1))
    return {
        "lines": found[:PAGE_SIZE],
        "older": found[PAGE_SIZE - 1].number if len(found) > PAGE_SIZE else None,
        "since": visit.console.context.recent.since,
        "everything": visit.client.adapters.everything,
        "kinds": KINDS,
        "file": visit.console.settings.audit is not None,
        **filters,
    }


def lines_for(visit: Visit) -> Iterator[Line]:
    """What the client may know of, the newest first: who may not know of all adapters sees its own acts."""
    client = visit.client
    lines = iter(visit.console.context.recent)
    if client.adapters.everything:
        return lines
    return (line for line in lines if line.act.client == client.id)


def matching(lines: Iterator[Line], before: int | None, who: str, what: str, kind: str) -> Iterator[Line]:
    """Those that pass the filters."""
    for line in lines:
        act = line.act
        if before is not None and line.number >= before:
            continue
        if kind in ("acts", "failed", "refusals") and line.refused is not (kind == "refusals"):
            continue
        if kind == "failed" and act.code == "OK":
            continue
        if who and who.lower() not in f"{act.client} {act.peer}".lower():
            continue
        if what and what.lower() not in f"{act.method} {act.resource} {act.reason}".lower():
            continue
        yield line


ENTRIES: tuple[Entry, ...] = (Page("/activity", ACTIVITY, show, "activity.html", "Activity", nav="Activity"),)
