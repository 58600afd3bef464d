"""Loading, serving, draining: who is let in, how many are inside, and work that holds up no end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
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


MOST_OF_FREE = 3  # times the free places that one tenant may hold; so a quarter is always left for others


class Lifecycle:
    """Admission by a counter of our own, so that a full server still answers health and lists adapters."""

    def __init__(self, limit: int, running: int | None = None) -> None:
        """`limit` places. While `running` of them (default: all) are not taken, they are anybody's."""
        self.phase = Phase.LOADING
        self.limit, self._running = limit, limit if running is None else running
        self.in_flight = 0
        self._held: Counter[str] = Counter()  # places by tenant
        self.ending = asyncio.Event()  # set when a drain begins
        self._watches: dict[asyncio.Timeout, bool] = {}  # whether a drain ends it
        self._watched: Counter[str] = Counter()  # by connection, and by address

    def resize(self, limit: int, running: int) -> None:
        """So many places from now on; who has one keeps it."""
        self.limit, self._running = limit, running

    @property
    def pressed(self) -> bool:
        """More than half of the places are taken."""
        return 2 * self.in_flight > self.limit

    def gate(self) -> None:
        """Raise NotLoaded or Draining unless the server is serving."""
        if self.phase is Phase.LOADING:
            raise NotLoaded("the base model is still loading")
        if self.phase is Phase.DRAINING:
            raise Draining("the server is stopping")

    @contextmanager
    def admitted(self, tenant: str = "") -> Iterator[None]:
        """Take one of `limit` places; raises Overloaded at once where none is left.

        Where tenants have names, each may wait as long as it holds less than three times what is free: one
        alone gets three quarters of all, two that want all three sevenths each, and others still find room.
        """
        if self.in_flight >= self.limit:
            text = f"{self.limit} requests are running or waiting already"
            raise Overloaded(text, limit=str(self.limit), bound="queue")
        waits = self.in_flight >= self._running
        if tenant and waits and self._held[tenant] >= MOST_OF_FREE * (self.limit - self.in_flight):
            raise Overloaded("this tenant has its part of the places that requests wait in", bound="tenant")
        self.in_flight += 1
        self._held[tenant] += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

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
