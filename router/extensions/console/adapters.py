"""Adapters: the list of all versions, live."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from router.engine.base import EngineStatus
from router.extensions.console.overview import WHILE
from router.extensions.console.site import Entry, Page, Visit
from router.types import AdapterRef
from router.v1 import adapters_pb2 as pb

LIST = "/router.v1.AdapterService/ListAdapters"
PAGE_SIZE = 100
STATES = {  # as the badge shows them
    pb.Adapter.STATE_DISCOVERED: ("on disk", ""),
    pb.Adapter.STATE_LOADING: ("loading", "info"),
    pb.Adapter.STATE_READY: ("ready", "ok"),
    pb.Adapter.STATE_OFFLOADED: ("offloaded", ""),
    pb.Adapter.STATE_QUARANTINED: ("quarantined", "bad"),
}


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    return await live(visit)


async def live(visit: Visit) -> dict[str, Any]:
    """The table."""
    query = visit.query
    request = pb.ListAdaptersRequest(
        page_size=PAGE_SIZE,
        page_token=query.get("page", ""),
        domain=query.get("domain", ""),
        task=query.get("task", ""),
    )
    answer = await visit.ask(LIST, request)
    status, traffic = visit.console.context.engine.status(), traffic_of(visit)
    return {
        "rows": [row(visit, adapter, status, traffic) for adapter in answer.adapters],
        "next_page": answer.next_page_token,
        "count": visit.console.context.registry.count() if visit.client.adapters.everything else None,
        "domain": query.get("domain", ""),
        "task": query.get("task", ""),
        "page": query.get("page", ""),
    }


def row(
    visit: Visit, adapter: pb.Adapter, status: EngineStatus, traffic: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """What is shown of a version, here and on its own page."""
    ref = ref_of(adapter)
    state, kind = STATES.get(adapter.state, ("not known", ""))
    return {
        "ref": ref,
        "of": adapter,
        "state": state,
        "kind": kind,
        "tier": tier_of(adapter.digest, status),
        "share": traffic.get((ref.name, ref.version)),
        "last_used": adapter.last_used.ToDatetime(UTC).timestamp() if adapter.HasField("last_used") else None,
        "measured": visit.console.context.registry.measured(ref),
    }


def ref_of(adapter: pb.Adapter) -> AdapterRef:
    """Its name and version."""
    return AdapterRef(adapter.name.split("/")[1], adapter.version)


def tier_of(digest: str, status: EngineStatus) -> str:
    """Where its weights are."""
    if digest and digest in status.device_adapters:
        return "device"
    return "host" if digest and digest in status.host_adapters else "disk"


def traffic_of(visit: Visit) -> dict[tuple[str, str], float]:
    """Who had which share of the requests of the last minutes, of those that the client may know of."""
    pair = visit.console.history.over(WHILE)
    if pair is None:
        return {}
    before, after, visible = pair[0].by_version, pair[1].by_version, visit.client.adapters
    counts = {
        who: now.requests - (before[who].requests if who in before else 0)
        for who, now in after.items()
        if who[0] in visible
    }
    total = sum(counts.values())
    return {who: count / total for who, count in counts.items() if count} if total else {}


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters", LIST, show, "adapters.html", "Adapters", nav="Adapters"),
    Page("/adapters/live", LIST, live, "adapters_live.html"),
)
