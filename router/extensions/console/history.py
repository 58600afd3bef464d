"""Changes of adapters since the server started: of state, default or pin, the newest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.extensions.console.site import ConsoleContext

MOST = 1000
Seen = tuple[AdapterState, bool, bool]


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What happened to a version."""

    time: float  # unix seconds
    ref: AdapterRef
    what: str
    more: str = ""  # why


class Events:
    """Follows the registry; lives on the event loop."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._changes: deque[VersionChange] = deque(maxlen=MOST)
        self._seen: dict[AdapterRef, Seen] = {}

    def __iter__(self) -> Iterator[VersionChange]:
        """The newest first."""
        return reversed(self._changes)

    def quarantined(self) -> list[AdapterRef]:
        """Versions that are refused now, by name."""
        found = [ref for ref, one in self._seen.items() if one[0] is AdapterState.QUARANTINED]
        return sorted(found, key=lambda ref: (ref.name, ref.version))

    async def follow(self) -> None:
        """For ever, once there is something to follow."""
        await self._context.ready.wait()
        for info in self._context.registry.listed():
            self._seen[info.ref] = seen(info)
        async with aclosing(cast(Any, self._context.registry.watch())) as events:
            async for event in events:
                self.note(event)

    def note(self, event: AdapterEvent) -> None:
        """Keep what is new in it."""
        info, ref = event.adapter, event.adapter.ref
        if event.kind is AdapterEventKind.REMOVED:
            self._seen.pop(ref, None)
            self._changes.append(VersionChange(event.time, ref, "removed from disk"))
            return
        before = self._seen.get(ref)
        self._seen[ref] = seen(info)
        if before is None:
            self._changes.append(VersionChange(event.time, ref, "appeared", info.error))
            return
        for what, more in differences(before, info):
            self._changes.append(VersionChange(event.time, ref, what, more))


def seen(info: AdapterInfo) -> Seen:
    """What is compared."""
    return info.state, info.default, info.pinned


def differences(before: Seen, info: AdapterInfo) -> Iterator[tuple[str, str]]:
    """In words, and why."""
    state, default, pinned = before
    if info.state is not state and info.state is not AdapterState.LOADING:
        yield info.state.value, info.error
    if info.default is not default:
        yield "became the default" if info.default else "is the default no more", ""
    if info.pinned is not pinned:
        yield "pinned" if info.pinned else "unpinned", ""
