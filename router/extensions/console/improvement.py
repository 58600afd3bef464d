"""Improvement: what feedback did for each adapter, and the button that starts a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from router.errors import FailedPrecondition, NotFound
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.policy import ADMIN, OBSERVE
from router.v1 import adapters_pb2

if TYPE_CHECKING:
    from router.ports import Improvement

PATH = "/improvement"
LIST = "/router.v1.AdapterService/ListAdapters"
PAGE_SIZE = 500
MOST_RUNS = 5  # of an adapter
MOST_SHOWN = 100


async def show(visit: Visit) -> dict[str, Any]:
    """Every adapter that the client may see; first those that have runs, then by their feedback."""
    made = visit.console.context.improvements
    if made is None:
        absent = "This server has no runs that make an adapter better by feedback."
        return {"absent": absent, "shown": [], "others": [], "why_not": "", "texts": True}
    found = await asyncio.to_thread(made.overview, await names(visit))
    shown = [row_of(one) for one in found if one.runs or one.running or _usable(one)]
    shown.sort(key=lambda one: (not one["it"].running, -one["usable"]))
    return {
        "absent": "",
        "shown": shown[:MOST_SHOWN],
        "others": [one.name for one in found if not (one.runs or one.running or _usable(one))],
        "most": MOST_RUNS,
        "texts": visit.console.settings.feedback == "texts",
        "why_not": made.why_not or visit.why_not(ADMIN),
    }


def _usable(one: Improvement) -> int:
    """Praised and corrected answers since the last offer: more than can be used, since some are left out."""
    return one.counts["good"] + one.counts["corrected"] if one.counts is not None else 0


def row_of(one: Improvement) -> dict[str, Any]:
    """An adapter with how much of the needed feedback there is."""
    usable = _usable(one)
    enough = one.least > 0 and usable >= one.least
    return {
        "it": one,
        "usable": usable,
        "share": min(1.0, usable / one.least) if one.least else 1.0,
        "enough": enough,
        "goes_on": bool(one.runs) and one.runs[0].tone in ("info", "warn"),
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
