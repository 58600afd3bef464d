"""From the engine thread to the event loop: one hand-off a step for all rows."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.engine.base import Delta, Finished
from router.errors import DeadlineExceeded, RouterError, Unavailable
from router.types import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        if isinstance(event, Read):
            raise TypeError("a generation got what a reading asked for")
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


def deliver(events: Iterable[tuple[Receiver, Event]]) -> None:
    """Called on the engine thread: one wake-up for each event loop, however many rows."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Receiver, Event]]] = defaultdict(list)
    for stream, event in events:
        by_loop[stream.loop].append((stream, event))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, batch)


def _put_all(batch: list[tuple[Receiver, Event]]) -> None:
    for stream, event in batch:
        stream.put(event)
