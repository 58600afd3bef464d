"""Activity: who administered what, and who was refused."""

from __future__ import annotations

from typing import Any

from router.web.console.site import Entry, Page, Visit

ACTIVITY = "/console.v1/ListActivity"


async def show(visit: Visit) -> dict[str, Any]:
    """The newest first."""
    return {"entries": list(visit.console.insight.recent)[:200]}


ENTRIES: tuple[Entry, ...] = (Page("/activity", ACTIVITY, show, "activity.html", "Activity", nav="Activity"),)
