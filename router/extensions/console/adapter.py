"""One adapter version: facts, report card, versions, history, and what may be done about it."""

from __future__ import annotations

import asyncio
import json
import tomllib
from typing import Any

from router.errors import NotFound
from router.extensions.console.activity import ACTIVITY, lines_for
from router.extensions.console.acts import ACTS, GET, same_name
from router.extensions.console.adapters import row, traffic_of
from router.extensions.console.exchange import PageReply
from router.extensions.console.report_card import at, card_of, tables, text
from router.extensions.console.site import Entry, Page, Visit
from router.server.adapters import adapter_message
from router.types import AdapterRef
from router.v1 import adapters_pb2 as pb

PICTURES = {  # of a report card, and what they show, for who does not see them
    "curves.png": "Training curves: loss on training and validation rows over steps",
    "generalization.png": "Generalization: how much worse or better than the base on other text",
    "data_need.png": "Data need: the score over the number of training rows",
    "bias.png": "Bias: how often the answer changes with what should not matter",
}
PNG = b"\x89PNG\r\n\x1a\n"
MOST_VERSIONS, MOST_PROBES, MOST_EXAMPLES, MOST_LINES = 50, 20, 12, 30


async def show(visit: Visit) -> dict[str, Any]:
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
        (name, told)
        for name, told in PICTURES.items()
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
    Page("/adapters/{name}/{version}", GET, show, "adapter.html", "Adapter"),
    Page("/adapters/{name}/{version}/pictures/{picture}", GET, picture),
)
