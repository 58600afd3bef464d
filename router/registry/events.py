"""Telling watchers what happened to adapters, without ever waiting for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable

from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef

log = logging.getLogger(__name__)

_ADDED, _CHANGED, _REMOVED = AdapterEventKind.ADDED, AdapterEventKind.CHANGED, AdapterEventKind.REMOVED

LookUp = Callable[[AdapterRef], AdapterInfo | None]
IN_A_ROW = 64  # events to one watcher until others have their turn on the event loop

# (not yet delivered, new) -> what is delivered instead of both; None: nothing
_MERGED: dict[tuple[AdapterEventKind, AdapterEventKind], AdapterEventKind | None] = {
    (_ADDED, _CHANGED): _ADDED,
    (_ADDED, _REMOVED): None,
    (_REMOVED, _ADDED): _CHANGED,
}


class Mailbox:
    """What one watcher has not read yet: at most one event for each adapter version.

    Of those that are `present` nothing is kept but who they are: `look_up` says what they are when their turn
    comes.
    """

    def __init__(self, present: Iterable[AdapterRef] = (), look_up: LookUp = lambda _: None) -> None:
        self._present, self._look_up = OrderedDict.fromkeys(present), look_up
        self._events: OrderedDict[AdapterRef, AdapterEvent] = OrderedDict()
        self._began = time.time()
        self._filled = asyncio.Event()
        self._closed = False
        self._row = 0

    def put(self, event: AdapterEvent) -> None:
        """Add an event, merged with one that waits for the same version."""
        ref = event.adapter.ref
        if ref in self._present:  # it is told of as it will be
            if event.kind is _REMOVED:
                del self._present[ref]
            return
        waiting = self._events.pop(ref, None)
        kind = _MERGED.get((waiting.kind, event.kind), event.kind) if waiting else event.kind
        if kind is not None:
            self._events[ref] = AdapterEvent(kind, event.adapter, event.time)
            self._filled.set()

    def close(self) -> None:
        """No more events: the reader ends after what is there."""
        self._closed = True
        self._filled.set()

    async def take(self) -> AdapterEvent | None:
        """The oldest event; None once closed and empty."""
        self._row += 1
        if self._row % IN_A_ROW == 0:
            await asyncio.sleep(0)
        while True:
            while self._present:
                ref, _ = self._present.popitem(last=False)
                if (info := self._look_up(ref)) is not None:
                    return AdapterEvent(_ADDED, info, self._began)
            if self._events:
                return self._events.popitem(last=False)[1]
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()


class EventHub:
    """Lifecycle events for any number of watchers, and one callback list for routing."""

    def __init__(self) -> None:
        self._boxes: set[Mailbox] = set()
        self._subscribers: list[Callable[[], None]] = []
        self._told = False
        self._closed = False

    @property
    def watched(self) -> bool:
        """Whether anybody reads events."""
        return bool(self._boxes)

    def publish(self, kind: AdapterEventKind, info: AdapterInfo) -> None:
        """Hand an event to every watcher."""
        event = AdapterEvent(kind, info, time.time())
        for box in self._boxes:
            box.put(event)

    async def watch(
        self, present: Callable[[], Iterable[AdapterRef]], look_up: LookUp
    ) -> AsyncGenerator[AdapterEvent, None]:
        """The present set as ADDED, then every change, until closed. A slow reader gets merged events."""
        box = Mailbox(present(), look_up)
        if self._closed:
            box.close()
        self._boxes.add(box)
        try:
            while (event := await box.take()) is not None:
                yield event
        finally:
            self._boxes.discard(box)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the event loop when profiles may have changed, once for changes made together."""
        self._subscribers.append(changed)

    def profiles_changed(self) -> None:
        """Tell the subscribers soon."""
        if not self._told and self._subscribers and not self._closed:
            self._told = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._told = False
        for changed in self._subscribers:
            try:
                changed()
            except Exception:
                log.exception("a subscriber of adapter changes failed")

    def close(self) -> None:
        """End every watcher's stream."""
        self._closed = True
        for box in self._boxes:
            box.close()
