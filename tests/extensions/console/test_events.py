"""What became of adapters, in words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from router.extensions.console.history import Events
from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterState
from tests.fakes import adapter
from tests.server.helpers import until


def event(info: AdapterInfo, time: float = 5.0, kind: str = "changed") -> AdapterEvent:
    return AdapterEvent(AdapterEventKind(kind), info, time)


def test_changes_are_told_in_words() -> None:
    events = Events(SimpleNamespace())  # type: ignore[arg-type]
    info = adapter("medical")
    events.note(event(info, 1.5, "added"))
    events.note(event(info, 1.5, "added"))
    events.note(event(replace(info, state=AdapterState.LOADING)))
    events.note(event(ready := replace(info, state=AdapterState.READY)))
    events.note(event(replace(ready, default=True, pinned=True)))
    events.note(event(replace(ready, state=AdapterState.QUARANTINED, error="rank is 0")))
    events.note(event(info, 9.0, "removed"))
    events.note(event(adapter("new"), 9.0, "added"))
    told = [(change.ref.name, change.what, change.more) for change in events]
    assert told == [
        ("new", "appeared", ""),
        ("medical", "removed from disk", ""),
        ("medical", "unpinned", ""),
        ("medical", "is the default no more", ""),
        ("medical", "quarantined", "rank is 0"),
        ("medical", "pinned", ""),
        ("medical", "became the default", ""),
        ("medical", "ready", ""),
        ("medical", "appeared", ""),
    ]


async def test_a_page_shows_them(opened: SimpleNamespace) -> None:
    registry = opened.registry
    await until(lambda: bool(registry._watchers) and len(registry._watchers) >= 2)
    assert (
        "No change since the server started"
        in (await opened.http.get("/console/adapters/medical/1.0.0")).text
    )
    await registry.load(next(iter(registry.infos)))

    async def page() -> str:
        return str((await opened.http.get("/console/adapters/medical/1.0.0")).text)

    for _ in range(50):
        if ">ready</td>" in (text := await page()):
            break
    assert ">ready</td>" in text
