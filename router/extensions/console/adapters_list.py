"""The list of adapters: searched, filtered, sorted, page by page; quarantined versions first.

An adapter is a row with its default version; a quarantined version has a row of its own. The registry is read
in one step of the event loop, and only rows of the page become messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from itertools import groupby
from math import ceil
from typing import Any
from urllib.parse import urlencode

from router.engine.base import EngineStatus
from router.errors import Findings
from router.extensions.console.fields import page_number
from router.extensions.console.site import Entry, Page, Visit
from router.ports import Measured
from router.server.adapters import adapter_message
from router.server.metrics import samples_of
from router.types import AdapterInfo, AdapterRef, AdapterState
from router.v1 import adapters_pb2 as pb

LIST = "/router.v1.AdapterService/ListAdapters"
PAGE_SIZE = 50
MOST_TYPED = 200  # characters of a search
STATES = {  # as the badge shows them
    pb.Adapter.STATE_DISCOVERED: ("on disk", ""),
    pb.Adapter.STATE_LOADING: ("loading", "info"),
    pb.Adapter.STATE_READY: ("ready", "ok"),
    pb.Adapter.STATE_OFFLOADED: ("offloaded", ""),
    pb.Adapter.STATE_QUARANTINED: ("quarantined", "bad"),
}
NAMES = {  # of states, in the order of a sort by state
    AdapterState.QUARANTINED: "quarantined",
    AdapterState.LOADING: "loading",
    AdapterState.READY: "ready",
    AdapterState.OFFLOADED: "offloaded",
    AdapterState.DISCOVERED: "on disk",
}
ORDER = {state: place for place, state in enumerate(NAMES)}
SORTS = {  # titles; a sort is written `size` or, the other way round, `-size`
    "name": "Adapter",
    "state": "State",
    "score": "Score",
    "requests": "Requests",
    "used": "Last used",
    "size": "Size",
}


@dataclass(slots=True)
class AdapterRow:
    """An adapter by the version that is shown of it, or a quarantined version."""

    info: AdapterInfo
    versions: int = 0  # others of the name
    requests: int = 0  # of all versions


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the address asks for. `page` counts from 1."""

    q: str = ""
    state: str = ""
    sort: str = "name"
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Wanted:
        """Raises InvalidRequest naming every bad field."""
        found, text = Findings(), query.get("q", "").strip()
        if len(text) > MOST_TYPED:
            found.add("q", f"must have at most {MOST_TYPED} characters")
        state, sort, page = query.get("state", ""), query.get("sort") or "name", page_number(found, query)
        if state not in ("", *NAMES.values()):
            found.add("state", f"must be one of {', '.join(NAMES.values())}")
        if sort.removeprefix("-") not in SORTS:
            found.add("sort", f"must be one of {', '.join(SORTS)}")
        found.check()
        return cls(text, state, sort, page)

    def address(self, **changes: str | int) -> str:
        """The query of this list with some of it changed, beginning with `?`; defaults are left out."""
        fields = {"q": self.q, "state": self.state, "sort": "" if self.sort == "name" else self.sort}
        fields |= {k: str(v) for k, v in changes.items()}
        return "?" + urlencode({name: text for name, text in fields.items() if text})

    def takes(self, info: AdapterInfo, words: list[str]) -> bool:
        """Whether it is looked for; `words` are those of the search in lower case."""
        if self.state and NAMES[info.state] != self.state:
            return False
        if not words:
            return True
        text = f"{info.ref.name} {info.domain} {info.task} {info.description}".lower()
        return all(word in text for word in words)


async def live(visit: Visit) -> dict[str, Any]:
    """The page, and the table in it."""
    wanted, console = Wanted.of(visit.query), visit.console
    counts = requested(visit)
    visible, listed = visit.client.adapters, console.server.registry.listed()
    infos = [info for info in listed if visible.everything or info.ref.name in visible]
    words = wanted.q.lower().split()
    rows = [one for one in rows_of(infos, counts) if wanted.takes(one.info, words)]
    measured = console.server.registry.measured
    arrange(rows, wanted.sort, measured)
    pages = max(1, ceil(len(rows) / PAGE_SIZE))
    page = min(wanted.page, pages)
    status = console.server.engine.status()
    shown = rows[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    return {
        "rows": [shown_row(visit, one, status) for one in shown],
        "wanted": wanted,
        "sorts": SORTS,
        "states": list(NAMES.values()),
        "filtered": bool(wanted.q or wanted.state),
        "count": len(rows),
        "versions": len(infos),
        "first": (page - 1) * PAGE_SIZE + 1,
        "page": page,
        "pages": pages,
    }


def rows_of(infos: list[AdapterInfo], counts: Mapping[tuple[str, str], int]) -> Iterator[AdapterRow]:
    """Of versions by name: a row for each name with a usable version, and one for each quarantined one."""
    for name, of_name in groupby(infos, lambda info: info.ref.name):
        versions, chosen = list(of_name), None
        for info in versions:
            if info.state is AdapterState.QUARANTINED:
                yield AdapterRow(info)
            elif info.default or chosen is None or not chosen.default:
                chosen = info
        if chosen is not None:
            total = sum(counts.get((name, info.ref.version), 0) for info in versions) if counts else 0
            yield AdapterRow(chosen, len(versions) - 1, total)


def arrange(rows: list[AdapterRow], sort: str, measured: Callable[[AdapterRef], Measured | None]) -> None:
    """Sort in place: quarantined first, then as asked for, the most or the latest first; then by name."""
    by = sort.removeprefix("-")

    def score(row: AdapterRow) -> tuple[bool, str, float]:
        """By metric, since scores of different metrics cannot be compared; without a score last."""
        found = measured(row.info.ref)
        return (found is None, found.metric if found else "", -found.score[0] if found else 0.0)

    keys: Mapping[str, Callable[[AdapterRow], Any]] = {
        "state": lambda row: ORDER[row.info.state],
        "score": score,
        "requests": lambda row: -row.requests,
        "used": lambda row: -(row.info.last_used or 0.0),
        "size": lambda row: -row.info.size_bytes,
    }
    if by == "name":
        rows.sort(key=lambda row: row.info.ref.name, reverse=sort.startswith("-"))
    else:
        rows.sort(key=keys[by], reverse=sort.startswith("-"))
    rows.sort(key=lambda row: row.info.state is not AdapterState.QUARANTINED)


def requested(visit: Visit) -> Counter[tuple[str, str]]:
    """Requests by version since the server started, of the 200 versions that the metrics tell apart."""
    counts: Counter[tuple[str, str]] = Counter()
    for labels, value in samples_of(visit.console.server.metrics.requests, "_total"):
        counts[labels["adapter"], labels["version"]] += round(value)
    return counts


def shown_row(visit: Visit, one: AdapterRow, status: EngineStatus) -> dict[str, Any]:
    """What the list shows of it."""
    registry = visit.console.server.registry
    message = adapter_message(one.info, registry.etag(one.info.ref))
    return {**version_row(visit, message, status), "versions": one.versions, "requests": one.requests}


def version_row(visit: Visit, adapter: pb.Adapter, status: EngineStatus) -> dict[str, Any]:
    """What is shown of a version, here and on its own page."""
    ref = AdapterRef(adapter.name.split("/")[1], adapter.version)
    state, kind = STATES.get(adapter.state, ("not known", ""))
    return {
        "ref": ref,
        "of": adapter,
        "state": state,
        "kind": kind,
        "tier": tier_of(adapter.digest, status),
        "last_used": adapter.last_used.ToDatetime(UTC).timestamp() if adapter.HasField("last_used") else None,
        "measured": visit.console.server.registry.measured(ref),
    }


def tier_of(digest: str, status: EngineStatus) -> str:
    """Where its weights are."""
    if digest and digest in status.device_adapters:
        return "device"
    return "host" if digest and digest in status.host_adapters else "disk"


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters", LIST, live, "adapters.html", "Adapters", nav="Adapters"),
    Page("/adapters/live", LIST, live, "adapters_live.html"),
)
