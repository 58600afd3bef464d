"""Whose request is read next: every connection gets its turn, however many calls others have opened.

A call that has sent no body holds a turn until it comes. So turns are few, none of the calls that wait for
one holds anything else, and whoever opens calls in thousands waits behind itself alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.errors import Overloaded
from router.server.call import caller_of

GRACE_SECONDS = 0.5  # a turn is not taken away before
PART = 4  # a connection has one part in four of the turns at most; as many are kept for others
MOST_WAITING = 512  # calls; beyond, the address that has most of them loses one
BUSY = "too many calls wait for their turn to be read"


class Turn:
    """A call's right to be read, until `end`. `peer` is its connection, `address` where that comes from."""

    def __init__(self, peer: str, turns: Turns) -> None:
        self.peer, self.address = peer, caller_of(peer)
        self.began = asyncio.get_running_loop().time()
        self.ended = False
        self.given_up = asyncio.timeout(None)
        self._turns = turns

    def end(self) -> None:
        """The body is there, or never will be; may be called again."""
        if not self.ended:
            self.ended = True
            if self.given_up.when() is not None and not self.given_up.expired():
                self.given_up.reschedule(None)  # it was to be taken back, and comes to an end by itself
            self._turns.freed(self)


class Turns:
    """At most `most` at once; waited for `seconds` at most. Lives on one event loop."""

    def __init__(self, most: int, seconds: float, most_waiting: int = MOST_WAITING) -> None:
        self._most, self._seconds, self._most_waiting = most, seconds, most_waiting
        self._each = self._kept = max(1, most // PART)
        self._reading: dict[Turn, None] = {}  # the oldest first
        self._waiting: dict[asyncio.Future[None], Turn] = {}  # likewise
        self._held: Counter[str] = Counter()  # turns by connection, and by address
        self._timer: asyncio.TimerHandle | None = None

    @property
    def reading(self) -> int:
        """Calls that have a turn."""
        return len(self._reading)

    @asynccontextmanager
    async def turn(self, peer: str) -> AsyncIterator[Turn]:
        """Wait for a turn. Raises Overloaded if none comes in time, or if it is taken back before `end`."""
        turn = Turn(peer, self)
        await self._come(turn)
        try:
            async with turn.given_up:
                try:
                    yield turn
                finally:
                    turn.end()
        except TimeoutError:
            if not turn.given_up.expired():
                raise
            raise Overloaded("the body did not come, and others wait to be read", bound="no_body") from None

    def freed(self, turn: Turn) -> None:
        """Called by a turn that ends."""
        del self._reading[turn]
        for key in (turn.peer, turn.address):
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
        self._next()

    async def _come(self, turn: Turn) -> None:
        if self._fits(turn):  # who waits does not fit
            self._begin(turn)
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ready] = turn
        if len(self._waiting) > self._most_waiting:
            self._drop()
        self._take_back(turn)
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                await ready
        except BaseException as error:
            if self._waiting.pop(ready, None) is None and not turn.ended and turn in self._reading:
                turn.end()  # its turn had come just then
            if isinstance(error, TimeoutError) and timeout.expired():
                raise Overloaded(BUSY, bound="turns") from None
            raise

    def _fits(self, turn: Turn) -> bool:
        """Whether it may begin now: the last turns are for who has none, at an address that has few."""
        room, held = self._most - len(self._reading), self._held[turn.peer]
        if room > self._kept:
            return held < self._each
        return room > 0 and not held and self._held[turn.address] < self._most // 2

    def _begin(self, turn: Turn) -> None:
        turn.began = asyncio.get_running_loop().time()
        self._reading[turn] = None
        self._held.update((turn.peer, turn.address))

    def _next(self) -> None:
        """Begin with who may; those of an address and a connection that have few go first."""
        while self._waiting:
            ready, turn = min(self._waiting.items(), key=lambda entry: self._rank(entry[1]))
            if not self._fits(turn):
                self._take_back(turn)
                return
            del self._waiting[ready]
            if not ready.done():
                self._begin(turn)
                ready.set_result(None)

    def _rank(self, turn: Turn) -> tuple[int, int]:
        return self._held[turn.address], self._held[turn.peer]

    def _take_back(self, first: Turn) -> None:
        """Where `first` waits: the oldest turn of who has most, unless it has just begun.

        Many callers may share a connection (of a proxy), so one that has its part gives up one of its own.
        """
        late = asyncio.get_running_loop().time() - GRACE_SECONDS
        full = self._held[first.peer] >= self._each
        held = [turn for turn in self._reading if not full or turn.peer == first.peer]
        old = [turn for turn in held if turn.began <= late and turn.given_up.when() is None]
        if old:
            max(old, key=self._rank).given_up.reschedule(0)
        elif held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._next()

    def _drop(self) -> None:
        """Refuse the last of the address, and there of the connection, with most calls that wait."""
        waits = Counter(key for turn in self._waiting.values() for key in (turn.address, turn.peer))
        ready, _ = max(
            reversed(self._waiting.items()), key=lambda entry: (waits[entry[1].address], waits[entry[1].peer])
        )
        del self._waiting[ready]
        if not ready.done():
            ready.set_exception(Overloaded(BUSY, bound="turns"))
