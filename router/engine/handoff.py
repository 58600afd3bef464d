"""From the engine thread to the event loop: one hand-off a step for all rows."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable

from router.engine.base import Delta, Finished
from router.errors import RouterError

Event = Delta | Finished | RouterError


class Stream:
    """The receiving end of one job. Lives on the event loop it was made on."""

    def __init__(self, cancel: Callable[[Stream], None], ended: Callable[[Stream], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._cancel = cancel
        self._on_end = ended
        self.ended = False

    def cancel(self) -> None:
        """Ask the engine to drop the job; idempotent."""
        if not self.ended:
            self._cancel(self)

    def put(self, event: Event) -> None:
        """Called on the event loop."""
        self._events.append(event)
        if not isinstance(event, Delta):
            self.ended = True
            self._on_end(self)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then one Finished; leaving early cancels."""
        try:
            while True:
                while not self._events:
                    self._ready.clear()
                    await self._ready.wait()
                event = self._events.popleft()
                if isinstance(event, RouterError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()


def deliver(events: Iterable[tuple[Stream, Event]]) -> None:
    """Called on the engine thread: one wake-up for each event loop, however many rows."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Event]]] = defaultdict(list)
    for stream, event in events:
        by_loop[stream.loop].append((stream, event))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, batch)


def _put_all(batch: list[tuple[Stream, Event]]) -> None:
    for stream, event in batch:
        stream.put(event)
