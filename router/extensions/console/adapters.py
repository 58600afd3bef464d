"""The list of adapters; a version's own page, and what may be done about a version.

In the list an adapter is a row with its default version; a quarantined version has a row of its own. The
registry is read in one step of the event loop, and only rows of the page become messages. Each act is
confirmed on a page of its own, which says what will happen.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from functools import partial
from itertools import groupby, takewhile
from math import ceil
from typing import Any
from urllib.parse import urlencode

from router.engine.base import EngineStatus
from router.errors import Findings, Unavailable
from router.extensions.console.fields import page_number
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.feedback.recorder import FeedbackRecorder
from router.ports import AdapterRegistry, Measured
from router.registry.format.manifest import parse_manifest, parse_probes
from router.server.adapters import adapter_message
from router.server.metrics import samples_of
from router.types import AdapterInfo, AdapterRef, AdapterState
from router.v1 import adapters_pb2 as pb

SERVICE = "/router.v1.AdapterService/"
GET = SERVICE + "GetAdapter"
DAYS, DAY = 30, 86_400.0  # of which feedback is counted
GENERATE = "/router.v1.InferenceService/Generate"
CREATE = "/router.v1.ExperimentService/CreateExperiment"
LIST = SERVICE + "ListAdapters"
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


# -- the list


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


# -- acts


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
        "Automatic default",
        SERVICE + "ResetDefaultVersion",
        lambda visit, name: pb.ResetDefaultVersionRequest(name=name.partition("/versions/")[0]),
        "The rule picks the default version again.",
        lambda adapter: bool(adapter.default),
    ),
)


async def confirm(act: AdapterAct, visit: Visit) -> dict[str, Any]:
    """What will happen, and the form that does it."""
    name, version = visit.path("name"), visit.path("version")
    server = visit.console.server
    answer = await visit.ask(GET, pb.GetAdapterRequest(name=f"adapters/{name}/versions/{version}"))
    present = next((info for info in same_name(server.registry, name) if info.default), None)
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


# -- the page of a version


MOST_VERSIONS, MOST_PROBES, MOST_EXAMPLES = 50, 20, 12


async def show_version(visit: Visit) -> dict[str, Any]:
    """The page."""
    adapter, ref = await found(visit)
    server = visit.console.server
    document = server.registry.document
    report, manifest = await document(ref, "REPORT.md"), await document(ref, "adapter.toml")
    probes = await asyncio.to_thread(parse_probes, await document(ref, "probes.jsonl") or b"")
    status, counts = server.engine.status(), requested(visit)
    acts = [(act, act.why_not(visit, adapter)) for act in ACTS]
    versions = versions_of(visit, adapter, counts)
    return {
        "title": f"{ref.name} {ref.version}",
        "row": version_row(visit, adapter, status),
        "requests": counts[ref.name, ref.version],
        "adapter": adapter,
        "folder": server.registry.get(ref.name, ref.version).folder
        if visit.client.adapters.everything
        else "",
        "ref": ref,
        "acts": [act for act, why_not in acts if why_not == ""],
        "feedback": server.part(FeedbackRecorder) is not None,
        "refused": next((why_not for _, why_not in acts if why_not), ""),
        "may_default": not visit.why_not(ACTS[0].method),
        "did": next((act for act in ACTS if act.path == visit.query.get("did")), None),
        "report": (report or b"").decode(errors="replace"),
        "opinions": await opinions_of(visit, ref),
        "ways": ways_on(visit, adapter, ref, versions),
        "probes": probes[0][:MOST_PROBES],
        "versions": versions,
        "default_at": next((at for at, one in enumerate(versions) if one["of"].default), None),
        **(await asyncio.to_thread(manifest_of, manifest)),
    }


def manifest_of(data: bytes | None) -> dict[str, Any]:
    """What a manifest says of prompt, sampling and routing."""
    manifest = parse_manifest(data, "adapter")[0]
    routing, generation = manifest.routing, manifest.generation
    said = {field.name: getattr(generation, field.name) for field in fields(generation)}
    if (constraint := generation.constraint) is not None:
        said["constraint"] = constraint.kind
    return {
        "manifest": manifest,
        "generation": {name: value for name, value in said.items() if value not in (None, ())},
        "learned": [
            (title, len(texts), texts[:MOST_EXAMPLES])
            for title, texts in (
                ("examples", routing.examples),
                ("negative examples", routing.negative_examples),
                ("keywords", routing.keywords),
            )
        ],
    }


def versions_of(
    visit: Visit, shown: pb.Adapter, counts: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """All versions of that name, the newest first, each with what differs from the one that is shown."""
    registry, status = visit.console.server.registry, visit.console.server.engine.status()
    name = shown.name.split("/")[1]
    messages = [adapter_message(info, registry.etag(info.ref)) for info in same_name(registry, name)]
    return [
        {
            **version_row(visit, message, status),
            "requests": counts[name, message.version],
            "differs": differences(shown, message) if message.version != shown.version else [],
        }
        for message in reversed(messages[-MOST_VERSIONS:])
    ]


def differences(shown: pb.Adapter, other: pb.Adapter) -> list[str]:
    """What is different in the other version, in a few words."""
    names = (("base", "base_model"), ("rank", "rank"), ("domain", "domain"), ("task", "task"))
    found = [
        f"{title} {getattr(other, name) or 'none'}"
        for title, name in names
        if getattr(shown, name) != getattr(other, name)
    ]
    if shown.target_modules != other.target_modules:
        found.append("other layers")
    if shown.invocation_tokens != other.invocation_tokens:
        found.append("acts from a marker on" if other.invocation_tokens else "acts from the beginning")
    if shown.description != other.description:
        found.append("another description")
    if found:
        return found
    if not (shown.digest and other.digest):
        return ["weights, which are not read yet"]
    return ["nothing: the same files" if shown.digest == other.digest else "weights or adapter.toml"]


async def opinions_of(visit: Visit, ref: AdapterRef) -> Mapping[str, int]:
    """Feedback on a version in the last 30 days by verdict; empty where none is kept, or it cannot be read
    now. All tenants' only for a client that may know of all adapters."""
    recorder, client = visit.console.server.part(FeedbackRecorder), visit.client
    if recorder is None:
        return {}
    tenant = None if client.adapters.everything else client.tenant
    try:
        found = await recorder.read(lambda store: store.counts(time.time() - DAYS * DAY, ref.name, tenant))
    except Unavailable:  # the recorder has logged it
        return {}
    return {one.verdict: one.count for one in found if one.version == ref.version}


def ways_on(
    visit: Visit, adapter: pb.Adapter, ref: AdapterRef, versions: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What to do next with a version, as titles and addresses: only what this client can do here."""
    if adapter.state == pb.Adapter.STATE_QUARANTINED:
        return []
    ways = []
    if not visit.why_not(GENERATE):
        ways.append(("Ask it", f"{ROOT}/playground?{urlencode({'model': f'{ref.name}@{ref.version}'})}"))
    if not (visit.console.no_experiments or visit.why_not(CREATE)):
        sound = [one["ref"] for one in versions if one["kind"] != "bad" and one["ref"] != ref]
        default = next((one["ref"] for one in versions if one["of"].default and one["ref"] != ref), None)
        other = default or next(iter(sound), None)
        if other is not None:
            pair = (ref, other) if adapter.default else (other, ref)
            ways.append((f"Compare with {other.version}", comparison(*pair)))
    return ways


def comparison(control: AdapterRef, treatment: AdapterRef) -> str:
    """A new experiment with these versions filled in."""
    arms = {"control": control, "treatment": treatment}
    fields = {name: f"{one.name}@{one.version}" for name, one in arms.items()}
    return f"{ROOT}/new-experiment?{urlencode(fields)}"


async def found(visit: Visit) -> tuple[pb.Adapter, AdapterRef]:
    """The version of the path, as the service tells of it. Raises AdapterNotFound."""
    ref = AdapterRef(visit.path("name"), visit.path("version"))
    answer = await visit.ask(GET, pb.GetAdapterRequest(name=ref.resource))
    return answer.adapter, ref


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters", LIST, live, "adapters.html", "Adapters", nav="Adapters"),
    Page("/adapters/live", LIST, live, "adapters_live.html"),
    Page("/adapters/{name}/{version}", GET, show_version, "adapter.html", "Adapter"),
    *(
        Page(f"/adapters/{{name}}/{{version}}/{act.path}", GET, partial(confirm, act), "confirm.html")
        for act in ACTS
    ),
    *(Action(f"/adapters/{act.path}", act.method, partial(do, act)) for act in ACTS),
)
