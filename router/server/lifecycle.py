"""Loading, serving, draining: the phase of the server, calls without an end, and work that delays no exit."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto

from router.errors import Draining, NotLoaded, Overloaded
from router.server.call import caller_of

MOST_WATCHES = 1000  # calls without an end of their own, in all
WATCHES_EACH = {"connection": 100, "address": 500}


class Phase(Enum):
    """Where the server is in its life."""

    LOADING = auto()
    SERVING = auto()
    DRAINING = auto()


class Lifecycle:
    """The phase, and the watches that a drain ends. Lives on one event loop."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.ending = asyncio.Event()  # set when a drain begins
        self._watches: dict[asyncio.Timeout, bool] = {}  # whether a drain ends it
        self._watched: Counter[str] = Counter()  # by connection, and by address

    def gate(self) -> None:
        """Raise NotLoaded or Draining unless the server is serving."""
        if self.phase is Phase.LOADING:
            raise NotLoaded("the base model is still loading")
        if self.phase is Phase.DRAINING:
            raise Draining("the server is stopping")

    @asynccontextmanager
    async def watching(self, peer: str, cut: bool = True) -> AsyncIterator[None]:
        """A call with no end of its own: a drain ends it with Draining, or, without `cut`, leaves that to it.

        Raises Overloaded where too many are open, in all or from where this one comes.
        """
        timeout, whose = asyncio.timeout(None), {"connection": peer, "address": caller_of(peer)}
        for what, most in WATCHES_EACH.items():
            if self._watched[whose[what]] >= most:
                raise Overloaded(f"{most} calls without an end are open on this {what}", bound="watches")
        if len(self._watches) >= MOST_WATCHES:
            raise Overloaded(f"{MOST_WATCHES} calls without an end are open", bound="watches")
        self._watched.update(whose.values())
        try:
            async with timeout:
                self._watches[timeout] = cut
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Draining("the server is stopping") from None
        finally:
            self._watches.pop(timeout, None)
            self._watched -= Counter(whose.values())

    def drain(self) -> None:
        """Refuse new calls and end the watches; what was admitted goes on."""
        if self.phase is Phase.DRAINING:
            return
        self.phase = Phase.DRAINING
        self.ending.set()
        for watch, cut in tuple(self._watches.items()):
            if cut:
                watch.reschedule(0)


async def in_daemon_thread(work: Callable[[], None]) -> None:
    """Run blocking `work`; unlike `asyncio.to_thread`, the process may exit while it runs."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():  # the waiter was cancelled
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # handed to the waiter
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, daemon=True).start()
    await done
