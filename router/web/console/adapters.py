"""Adapters: what is there, in which state, and what may be done about it."""

from __future__ import annotations

from typing import Any

from router.v1 import adapters_pb2 as pb
from router.web.console.exchange import Answer, redirect
from router.web.console.site import ROOT, Action, Entry, Page, Visit

SERVICE = "/router.v1.AdapterService/"
LIST, GET = SERVICE + "ListAdapters", SERVICE + "GetAdapter"
LOAD, UNLOAD = SERVICE + "LoadAdapter", SERVICE + "UnloadAdapter"
SET_DEFAULT, RESET_DEFAULT = SERVICE + "SetDefaultVersion", SERVICE + "ResetDefaultVersion"
PAGE_SIZE = 100


async def show(visit: Visit) -> dict[str, Any]:
    """The list."""
    query = visit.query
    request = pb.ListAdaptersRequest(
        page_size=PAGE_SIZE,
        page_token=query.get("page", ""),
        domain=query.get("domain", ""),
        task=query.get("task", ""),
    )
    answer = await visit.ask(LIST, request)
    return {"adapters": answer.adapters, "next_page": answer.next_page_token, "query": query}


async def load(visit: Visit) -> Answer:
    """Bring it into memory."""
    await visit.ask(LOAD, pb.LoadAdapterRequest(name=visit.form.get("name", "")))
    return redirect(ROOT + "/adapters")


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters", LIST, show, "adapters.html", "Adapters", nav="Adapters"),
    Action("/adapters/load", LOAD, load),
)
