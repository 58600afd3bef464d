"""From the engine thread to the event loop: one hand-off a step for all rows."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from router.engine.base import Delta, Finished
from router.errors import DeadlineExceeded, RouterError, Unavailable
from router.types import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Read:
    """What came of a reading."""

    values: NDArray[np.float32]


Event = Delta | Read | Finished | RouterError


class Stream:
    """The receiving end of one job. Lives on the event loop it was made on."""

    def __init__(self, cancel: Callable[[Stream], None], ended: Callable[[Stream], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: deque[Delta | Finished | RouterError] = deque()
        self._awaited: asyncio.Future[None] | None = None  # by who waits for `_least` events
        self._least = 1
        self._cancel = cancel
        self._on_end = ended
        self.ended = False

    def cancel(self) -> None:
        """Ask the engine to drop the job; idempotent."""
        if not self.ended:
            self._cancel(self)

    def put(self, event: Event) -> None:
        """Called on the event loop."""
        if isinstance(event, Read):
            raise TypeError("a generation got what a reading asked for")
        self._events.append(event)
        if not isinstance(event, Delta):
            self.ended = True
            self._on_end(self)
        if self._awaited is not None and (self.ended or len(self._events) >= self._least):
            self._wake()

    async def wait(self, least: int) -> None:
        """Return when `least` events are there, or the last one or an error."""
        while len(self._events) < least and not self.ended:
            self._least = least
            self._awaited = self.loop.create_future()
            await self._awaited

    def ready(self) -> list[Delta | Finished]:
        """Take the events that are there. An error is raised once those before it are taken."""
        found: list[Delta | Finished] = []
        events = self._events
        while events:
            event = events[0]
            if isinstance(event, RouterError):
                if not found:
                    raise event
                break
            found.append(event)
            events.popleft()
        return found

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then one Finished; leaving early cancels."""
        try:
            while True:
                await self.wait(1)
                for event in self.ready():
                    yield event
                if self.ended and not self._events:
                    return
        finally:
            self.cancel()

    def _wake(self) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited.done():
            awaited.set_result(None)


class PendingReading:
    """The receiving end of one reading. Lives on the event loop it was made on."""

    def __init__(
        self, cancel: Callable[[PendingReading], None], ended: Callable[[PendingReading], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[NDArray[np.float32]] = self.loop.create_future()
        self._cancel, self._on_end = cancel, ended

    def put(self, event: Event) -> None:
        """Called on the event loop, once."""
        self._on_end(self)
        if self._future.done():
            return
        if isinstance(event, Read):
            self._future.set_result(event.values)
        else:
            self._future.set_exception(_refusal(event))

    async def wait(self) -> NDArray[np.float32]:
        """What was read; leaving early cancels. Raises DeadlineExceeded, EngineFailed, Unavailable."""
        try:
            return await self._future
        except asyncio.CancelledError:
            self._cancel(self)
            raise


def _refusal(event: Event) -> RouterError:
    if isinstance(event, RouterError):
        return event
    if isinstance(event, Finished) and event.reason is FinishReason.DEADLINE:
        return DeadlineExceeded("not read in time")
    return Unavailable("the engine has stopped")


Receiver = Stream | PendingReading


Events = list[tuple[Receiver, Event]]


class EventDispatcher:
    """Brings events to their event loops, in order, by a thread of its own.

    Who wakes a loop loses the interpreter to it until it has done its work. The engine's thread puts events
    down and goes on; they are taken to their loops as soon as it computes, or has nothing to do.
    """

    def __init__(self) -> None:
        self._batches: SimpleQueue[Events | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, events: Events) -> None:
        """Have them delivered, after those before them."""
        if events:
            self._batches.put(events)

    def close(self) -> None:
        """Deliver what there is, and end the thread."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (events := self._batches.get()) is not None:
            try:
                deliver(events)
            except Exception:
                log.exception("events cannot be delivered")


def deliver(events: Iterable[tuple[Receiver, Event]]) -> None:
    """One wake-up for each event loop, however many rows."""
    by_loop: dict[asyncio.AbstractEventLoop, Events] = defaultdict(list)
    for stream, event in events:
        by_loop[stream.loop].append((stream, event))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, batch)


def _put_all(batch: Events) -> None:
    for stream, event in batch:
        stream.put(event)
