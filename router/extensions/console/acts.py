"""What may be done about an adapter version: asked for on a page of its own, which says what will happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from router.extensions.console.exchange import PageReply, redirect
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, Visit
from router.ports import AdapterRegistry
from router.types import AdapterInfo, AdapterRef
from router.v1 import adapters_pb2 as pb

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


ENTRIES: tuple[Entry, ...] = (
    *(
        Page(f"/adapters/{{name}}/{{version}}/{act.path}", GET, partial(confirm, act), "confirm.html")
        for act in ACTS
    ),
    *(Action(f"/adapters/{act.path}", act.method, partial(do, act)) for act in ACTS),
)
