"""Adapters: the list of all versions, live; a version's own page; and what may be done about a version.

Each act is confirmed on a page of its own, which says what will happen.
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from itertools import takewhile
from typing import Any

from router.engine.base import EngineStatus
from router.errors import NotFound
from router.extensions.console.activity import ACTIVITY, lines_for
from router.extensions.console.overview import WHILE
from router.extensions.console.rendering import segment
from router.extensions.console.report_card import at, card_of, tables, text
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.ports import AdapterRegistry
from router.server.adapters import adapter_message
from router.types import AdapterInfo, AdapterRef
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


async def live(visit: Visit) -> dict[str, Any]:
    """The page, and the table in it."""
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
    return visit.console.traffic.shares(WHILE, visit.client.adapters.__contains__)


SERVICE = "/router.v1.AdapterService/"
GET = SERVICE + "GetAdapter"


@dataclass(frozen=True, slots=True)
class AdapterAct:
    """`path` names it in addresses; `fits` tells whether there is something to do; `done` says afterwards
    what was."""

    path: str
    title: str
    method: str
    message: Callable[[Visit, str], Any]
    done: str
    fits: Callable[[pb.Adapter], bool]
    harms: bool = False

    def why_not(self, visit: Visit, adapter: pb.Adapter) -> str | None:
        """None where it does not fit this version now; else why the client may not do it, empty if it may."""
        return visit.why_not(self.method) if self.fits(adapter) else None


def _default(visit: Visit, name: str) -> pb.SetDefaultVersionRequest:
    force = visit.form.get("force") == "yes"
    return pb.SetDefaultVersionRequest(
        name=name,
        etag=visit.form.get("etag", ""),
        force=force,
        reason=visit.form.get("reason", "").strip() if force else "",
    )


def _in_memory(adapter: pb.Adapter) -> bool:
    return bool(adapter.state == pb.Adapter.STATE_READY)


def _sound(adapter: pb.Adapter) -> bool:
    return bool(adapter.state != pb.Adapter.STATE_QUARANTINED)


ACTS = (
    AdapterAct(
        "default",
        "Make default",
        SERVICE + "SetDefaultVersion",
        _default,
        "It is the default version now.",
        lambda adapter: not adapter.default and _sound(adapter),
    ),
    AdapterAct(
        "load",
        "Load",
        SERVICE + "LoadAdapter",
        lambda visit, name: pb.LoadAdapterRequest(name=name),
        "It is in memory now.",
        lambda adapter: not _in_memory(adapter),
    ),
    AdapterAct(
        "pin",
        "Pin",
        SERVICE + "LoadAdapter",
        lambda visit, name: pb.LoadAdapterRequest(name=name, pinned=True),
        "It is in memory, and stays there.",
        lambda adapter: not adapter.pinned and _sound(adapter),
    ),
    AdapterAct(
        "unpin",
        "Unpin",
        SERVICE + "LoadAdapter",
        lambda visit, name: pb.LoadAdapterRequest(name=name, pinned=False),
        "It gives way to others where memory is short.",
        lambda adapter: bool(adapter.pinned),
    ),
    AdapterAct(
        "unload",
        "Unload",
        SERVICE + "UnloadAdapter",
        lambda visit, name: pb.UnloadAdapterRequest(name=name),
        "Its memory is free again.",
        _in_memory,
        harms=True,
    ),
    AdapterAct(
        "reset",
        "Back to the rule",
        SERVICE + "ResetDefaultVersion",
        lambda visit, name: pb.ResetDefaultVersionRequest(name=name.partition("/versions/")[0]),
        "The rule picks the default version again.",
        lambda adapter: bool(adapter.default),
    ),
)


async def confirm(act: AdapterAct, visit: Visit) -> dict[str, Any]:
    """What will happen, and the form that does it."""
    name, version = visit.path("name"), visit.path("version")
    context = visit.console.context
    answer = await visit.ask(GET, pb.GetAdapterRequest(name=f"adapters/{name}/versions/{version}"))
    present = next((info for info in same_name(context.registry, name) if info.default), None)
    return {
        "title": f"{act.title}: {name} {version}",
        "act": act,
        "adapter": answer.adapter,
        "name": name,
        "version": version,
        "present": present,
        "why_not": visit.why_not(act.method),
        "back": page_of(name, version),
    }


def same_name(registry: AdapterRegistry, name: str) -> Iterator[AdapterInfo]:
    """All versions of that name, in their order."""
    return takewhile(lambda info: info.ref.name == name, registry.listed(AdapterRef(name, "")))


async def do(act: AdapterAct, visit: Visit) -> PageReply:
    """Do it."""
    name = visit.form.get("name", "")
    await visit.ask(act.method, act.message(visit, name))
    parts = name.split("/")
    if len(parts) != 4:
        return redirect(ROOT + "/adapters")
    return redirect(f"{page_of(parts[1], parts[3])}?did={act.path}")


def page_of(name: str, version: str) -> str:
    """The page of a version."""
    return f"{ROOT}/adapters/{segment(name)}/{segment(version)}"


PICTURES = {  # of a report card, and what they show_version, for who does not see them
    "curves.png": "Training curves: loss on training and validation rows over steps",
    "generalization.png": "Generalization: how much worse or better than the base on other text",
    "data_need.png": "Data need: the score over the number of training rows",
    "bias.png": "Bias: how often the answer changes with what should not matter",
}
PNG = b"\x89PNG\r\n\x1a\n"
MOST_VERSIONS, MOST_PROBES, MOST_EXAMPLES, MOST_LINES = 50, 20, 12, 30


async def show_version(visit: Visit) -> dict[str, Any]:
    """The page."""
    adapter, ref = await found(visit)
    context = visit.console.context
    status, traffic = context.engine.status(), traffic_of(visit)
    read = {name: await context.registry.document(ref, name) for name in DOCUMENTS}
    card, manifest, probes = await asyncio.to_thread(parsed, read)
    acts = [(act, act.why_not(visit, adapter)) for act in ACTS]
    return {
        "title": f"{ref.name} {ref.version}",
        "row": row(visit, adapter, status, traffic),
        "adapter": adapter,
        "ref": ref,
        "acts": acts,
        "refused": next((why_not for _, why_not in acts if why_not), ""),
        "did": next((act for act in ACTS if act.path == visit.query.get("did")), None),
        "card": card,
        "manifest": manifest,
        "probes": probes,
        "pictures": await pictures_of(visit, ref) if card is not None else [],
        **versions_of(visit, ref, status, traffic),
        "happened": happened(visit, ref.name),
    }


async def found(visit: Visit) -> tuple[pb.Adapter, AdapterRef]:
    """The version of the path, as the service tells of it. Raises AdapterNotFound."""
    ref = AdapterRef(visit.path("name"), visit.path("version"))
    answer = await visit.ask(GET, pb.GetAdapterRequest(name=ref.resource))
    return answer.adapter, ref


async def picture(visit: Visit) -> PageReply:
    """A picture of its report card."""
    _, ref = await found(visit)
    name = visit.path("picture")
    data = await visit.console.context.registry.document(ref, name) if name in PICTURES else None
    if data is None or not data.startswith(PNG):
        raise NotFound("picture", name)
    return PageReply(data, "image/png", headers={"cache-control": "private, max-age=60"})


async def pictures_of(visit: Visit, ref: AdapterRef) -> list[tuple[str, str]]:
    """Those that are there."""
    registry = visit.console.context.registry
    return [
        (name, description)
        for name, description in PICTURES.items()
        if (await registry.document(ref, name) or b"").startswith(PNG)
    ]


DOCUMENTS = ("report.json", "adapter.toml", "probes.jsonl")


def parsed(read: dict[str, bytes | None]) -> tuple[Any, dict[str, Any], list[dict[str, str]]]:
    """Report card, manifest and probes. Blocks for some milliseconds where they are large."""
    return (
        card_of(read["report.json"]),
        manifest_of(read["adapter.toml"] or b""),
        probes_of(read["probes.jsonl"] or b""),
    )


def manifest_of(data: bytes) -> dict[str, Any]:
    """What a manifest says of prompt, sampling and routing."""
    try:
        manifest = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        manifest = {}
    generation = at(manifest, "generation")
    return {
        "license": text(at(manifest, "adapter", "license")),
        "system": text(at(manifest, "prompt", "system")),
        "template": text(at(manifest, "prompt", "template")),
        "generation": [
            (name, shown(value))
            for name, value in (generation if isinstance(generation, dict) else {}).items()
        ],
        "examples": texts(at(manifest, "routing", "examples")),
        "negative": texts(at(manifest, "routing", "negative_examples")),
        "keywords": texts(at(manifest, "routing", "keywords")),
    }


def texts(value: Any) -> tuple[int, list[str]]:
    """How many there are, and the first."""
    listed = [text(one) for one in value if isinstance(one, str)] if isinstance(value, list) else []
    return len(listed), listed[:MOST_EXAMPLES]


def shown(value: Any) -> str:
    """A setting of any kind."""
    if isinstance(value, list):
        return f"{len(value)} of them" if len(value) > 3 else ", ".join(map(str, value)) or "none"
    return text(str(value))


def probes_of(data: bytes) -> list[dict[str, str]]:
    """The first of them."""
    lines = data.decode(errors="replace").splitlines()[:MOST_PROBES]
    try:
        probes = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError):
        return []
    return [{name: text(one.get(name)) for name in ("prompt", "expect", "match")} for one in tables(probes)]


def versions_of(visit: Visit, ref: AdapterRef, status: Any, traffic: Any) -> dict[str, Any]:
    """All versions of that name, the newest first, and the place of the default among them."""
    registry = visit.console.context.registry
    same = same_name(registry, ref.name)
    messages = [adapter_message(info, registry.etag(info.ref)) for info in same][-MOST_VERSIONS:]
    messages.reverse()
    return {
        "versions": [row(visit, message, status, traffic) for message in messages],
        "default_at": next((at for at, message in enumerate(messages) if message.default), None),
    }


def happened(visit: Visit, name: str) -> list[dict[str, Any]]:
    """What became of versions of that name, and who did what to them: the newest first."""
    lines: list[dict[str, Any]] = [
        {"time": one.time, "about": one.ref.version, "what": one.what, "more": one.more}
        for one in visit.console.events
        if one.ref.name == name
    ]
    if not visit.why_not(ACTIVITY):
        lines += [
            {
                "time": line.time,
                "about": line.act.resource.partition("/versions/")[2],
                "what": f"{line.act.method.rpartition('/')[2]}: {line.act.code}",
                "more": f"by {line.act.client or line.act.peer}",
            }
            for line in lines_for(visit)
            if line.act.resource.split("/")[:2] == ["adapters", name]
        ]
    return sorted(lines, key=lambda line: -line["time"])[:MOST_LINES]


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters", LIST, live, "adapters.html", "Adapters", nav="Adapters"),
    Page("/adapters/live", LIST, live, "adapters_live.html"),
    Page("/adapters/{name}/{version}", GET, show_version, "adapter.html", "Adapter"),
    Page("/adapters/{name}/{version}/pictures/{picture}", GET, picture),
    *(
        Page(f"/adapters/{{name}}/{{version}}/{act.path}", GET, partial(confirm, act), "confirm.html")
        for act in ACTS
    ),
    *(Action(f"/adapters/{act.path}", act.method, partial(do, act)) for act in ACTS),
)
