"""Answers that nobody reads: a message that the transport cannot take for long ends its call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from router.errors import DeadlineExceeded
from router.server.call import Call

SEND_SECONDS = 30.0  # that the caller's windows may be full
PRESSED_SECONDS = 2.0  # the same where others need the place
LOOK_SECONDS = 1.0


class Sending:
    """The open answers of a server; `pressed` tells whether places are scarce. Lives on one event loop.

    A call notes when its present write began. A timer for every write would cost more than to look at all
    of them now and then.
    """

    def __init__(self, pressed: Callable[[], bool]) -> None:
        self._pressed = pressed
        self._open: set[Call] = set()

    @asynccontextmanager
    async def watched(self, call: Call) -> AsyncIterator[None]:
        """The block answers the call. Raises DeadlineExceeded where a write takes too long."""
        timeout = call.not_read = asyncio.timeout(None)
        try:
            async with timeout:
                self._open.add(call)
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the answer was not read in time", bound="not_reading") from None
        finally:
            self._open.discard(call)

    async def follow(self) -> None:
        """End those that wait too long, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """End those that wait too long now."""
        latest = time.monotonic() - (PRESSED_SECONDS if self._pressed() else SEND_SECONDS)
        for call in self._open:
            if 0 < call.writing_since < latest and call.not_read is not None:
                call.writing_since = 0.0
                call.not_read.reschedule(0)
