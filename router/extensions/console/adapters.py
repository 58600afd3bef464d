"""A version's own page, and what may be done about a version.

Each act is confirmed on a page of its own, which says what will happen.
"""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any
from urllib.parse import urlencode

from router.errors import NotFound, Unavailable
from router.extensions.console.adapters_list import requested, version_row
from router.extensions.console.rendering import segment
from router.extensions.console.report_card import Card, at, card_of, tables, text
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.feedback.recorder import FeedbackRecorder
from router.ports import AdapterRegistry
from router.server.adapters import adapter_message
from router.types import AdapterInfo, AdapterRef
from router.v1 import adapters_pb2 as pb

SERVICE = "/router.v1.AdapterService/"
GET = SERVICE + "GetAdapter"
DAYS, DAY = 30, 86_400.0  # of which feedback is counted
GENERATE = "/router.v1.InferenceService/Generate"
CREATE = "/router.v1.ExperimentService/CreateExperiment"


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


PICTURES = {  # of a report card, and what they show_version, for who does not see them
    "curves.png": "Training curves: loss on training and validation rows over steps",
}
PNG = b"\x89PNG\r\n\x1a\n"
MOST_VERSIONS, MOST_COMPARED, MOST_PROBES, MOST_EXAMPLES = 50, 10, 20, 12


async def show_version(visit: Visit) -> dict[str, Any]:
    """The page."""
    adapter, ref = await found(visit)
    server = visit.console.server
    status, counts = server.engine.status(), requested(visit)
    card, manifest, probes = await read_version(visit, ref)
    acts = [(act, act.why_not(visit, adapter)) for act in ACTS]
    versions = await versions_of(visit, adapter, manifest, counts)
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
        "card": card,
        "scores": scores_of(visit, ref, card, versions),
        "opinions": await opinions_of(visit, ref),
        "ways": ways_on(visit, adapter, ref, versions),
        "manifest": manifest,
        "probes": probes,
        "pictures": await pictures_of(visit, ref) if card is not None else [],
        "versions": versions,
        "default_at": next((at for at, one in enumerate(versions) if one["of"].default), None),
    }


async def read_version(
    visit: Visit, ref: AdapterRef
) -> tuple[Card | None, dict[str, Any], list[dict[str, str]]]:
    """Report card, manifest and probes of a version."""
    read = {name: await visit.console.server.registry.document(ref, name) for name in DOCUMENTS}
    return await asyncio.to_thread(parsed, read)


def scores_of(
    visit: Visit, ref: AdapterRef, card: Card | None, versions: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """The main metric: of this version, of the base, and of the version before. Title, value, interval."""
    if card is None or not card.arms:
        return []
    shown = [
        ("This version" if arm["mine"] else str(arm["title"]), arm["score"]) for arm in reversed(card.arms)
    ]
    found = [(title.capitalize(), str(score), score.interval) for title, score in shown]
    place = next((at for at, one in enumerate(versions) if one["ref"] == ref), len(versions))
    for one in versions[place + 1 :]:
        before = one["measured"]
        if before is not None and before.metric == card.metric:
            value, low, high = (f"{number:.3f}" for number in before.score)
            found.insert(1, (f"Version {one['ref'].version}", value, f"{low} to {high}"))
            break
    return found


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


async def picture(visit: Visit) -> PageReply:
    """A picture of its report card."""
    _, ref = await found(visit)
    name = visit.path("picture")
    data = await visit.console.server.registry.document(ref, name) if name in PICTURES else None
    if data is None or not data.startswith(PNG):
        raise NotFound("picture", name)
    return PageReply(data, "image/png", headers={"cache-control": "private, max-age=60"})


async def pictures_of(visit: Visit, ref: AdapterRef) -> list[tuple[str, str]]:
    """Those that are there."""
    registry = visit.console.server.registry
    return [
        (name, description)
        for name, description in PICTURES.items()
        if (await registry.document(ref, name) or b"").startswith(PNG)
    ]


DOCUMENTS = ("report.json", "adapter.toml", "probes.jsonl")


def parsed(read: dict[str, bytes | None]) -> tuple[Card | None, dict[str, Any], list[dict[str, str]]]:
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


async def versions_of(
    visit: Visit, shown: pb.Adapter, manifest: Mapping[str, Any], counts: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """All versions of that name, the newest first, each with what differs from the one that is shown."""
    registry, status = visit.console.server.registry, visit.console.server.engine.status()
    name = shown.name.split("/")[1]
    messages = [adapter_message(info, registry.etag(info.ref)) for info in same_name(registry, name)]
    rows = []
    for place, message in enumerate(reversed(messages[-MOST_VERSIONS:])):
        row = version_row(visit, message, status)
        row["requests"] = counts[name, message.version]
        row["differs"] = []
        if message.version != shown.version:
            other = None
            if place < MOST_COMPARED and row["kind"] != "bad":
                read = await registry.document(row["ref"], "adapter.toml")
                other = await asyncio.to_thread(manifest_of, read or b"")
            row["differs"] = differences(shown, manifest, message, other)
        rows.append(row)
    return rows


def differences(
    shown: pb.Adapter, manifest: Mapping[str, Any], other: pb.Adapter, second: Mapping[str, Any] | None
) -> list[str]:
    """What is different in the other version, in a few words; manifests where both were read."""
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
    if second is not None:
        found += manifest_differences(manifest, second)
    if found:
        return found
    if not (shown.digest and other.digest):
        return ["weights, which are not read yet"]
    return ["nothing: the same files" if shown.digest == other.digest else "weights"]


def manifest_differences(shown: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The same of prompt, sampling defaults and what routing learns from."""
    titles = {"system": "another system prompt", "template": "another template"}
    titles["generation"] = "other sampling defaults"
    counted = {"examples": "examples", "negative": "negative examples", "keywords": "keywords"}
    return [title for name, title in titles.items() if shown[name] != other[name]] + [
        f"{other[name][0]} {title}, here {shown[name][0]}"
        for name, title in counted.items()
        if shown[name] != other[name]
    ]


ENTRIES: tuple[Entry, ...] = (
    Page("/adapters/{name}/{version}", GET, show_version, "adapter.html", "Adapter"),
    Page("/adapters/{name}/{version}/pictures/{picture}", GET, picture),
    *(
        Page(f"/adapters/{{name}}/{{version}}/{act.path}", GET, partial(confirm, act), "confirm.html")
        for act in ACTS
    ),
    *(Action(f"/adapters/{act.path}", act.method, partial(do, act)) for act in ACTS),
)
