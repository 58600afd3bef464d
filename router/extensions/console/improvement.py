"""Improvement: what feedback did for each adapter, and the button that starts a run."""

from __future__ import annotations

import asyncio
from typing import Any

from router.errors import FailedPrecondition, NotFound
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.policy import ADMIN, OBSERVE
from router.v1 import adapters_pb2

PATH = "/improvement"
LIST = "/router.v1.AdapterService/ListAdapters"
PAGE_SIZE = 500
MOST_RUNS = 5  # of an adapter


async def show(visit: Visit) -> dict[str, Any]:
    """Every adapter that the client may see."""
    made = visit.console.context.improvements
    if made is None:
        return {
            "absent": "`lora-router adapters improve` is not part of this server.",
            "shown": [],
            "why_not": "",
        }
    shown = await asyncio.to_thread(made.overview, await names(visit))
    return {
        "absent": "",
        "shown": shown,
        "most": MOST_RUNS,
        "why_not": made.why_not or visit.why_not(ADMIN),
    }


async def names(visit: Visit) -> list[str]:
    """Names of adapters, in alphabetical order."""
    found: set[str] = set()
    token = ""
    while True:
        request = adapters_pb2.ListAdaptersRequest(page_size=PAGE_SIZE, page_token=token)
        answer = await visit.ask(LIST, request)
        found |= {one.name.removeprefix("adapters/").partition("/")[0] for one in answer.adapters}
        if not (token := answer.next_page_token):
            return sorted(found)


async def start(visit: Visit) -> PageReply:
    """Begin a run. Raises NotFound, FailedPrecondition."""
    made, name = visit.console.context.improvements, visit.form.get("name", "")
    if made is None or made.why_not:
        raise FailedPrecondition(made.why_not if made is not None else "no run can be started here")
    if name not in await names(visit):
        raise NotFound("adapter", name)
    await asyncio.to_thread(made.start, name)
    return redirect(ROOT + PATH)


ENTRIES: tuple[Entry, ...] = (
    Page(PATH, OBSERVE, show, "improvement.html", "Improvement", nav="Improvement"),
    Action(PATH, ADMIN, start),
)
