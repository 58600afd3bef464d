"""Answers to those who do not read them: a message that the transport cannot take for long ends its call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.errors import DeadlineExceeded

SEND_SECONDS = 30.0  # that the caller's windows may be full
PRESSED_SECONDS = 2.0  # the same where others need the place
LOOK_SECONDS = 1.0
Context = grpc.aio.ServicerContext[Any, Any]


class Outgoing:
    """A context whose writes are watched; all else is the context's own.

    A timer for every write would cost more than the watching, so that looks at all of them now and then.
    """

    def __init__(self, context: Context, ended: asyncio.Timeout) -> None:
        self._context = context
        self.ended = ended
        self.since = 0.0  # time.monotonic() at which the present write began; 0: there is none

    async def write(self, message: Any) -> None:
        """Send; returns when the transport has taken it."""
        self.since = time.monotonic()
        await self._context.write(message)
        self.since = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Sending:
    """The open answers of a server; `pressed` tells whether places are scarce. Lives on one event loop."""

    def __init__(self, pressed: Callable[[], bool]) -> None:
        self._pressed = pressed
        self._open: set[Outgoing] = set()

    @asynccontextmanager
    async def watched(self, context: Context) -> AsyncIterator[Any]:
        """The context to answer by. Raises DeadlineExceeded where a write takes too long."""
        timeout = asyncio.timeout(None)
        outgoing = Outgoing(context, timeout)
        try:
            async with timeout:
                self._open.add(outgoing)
                yield outgoing
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the answer was not read in time", bound="not_reading") from None
        finally:
            self._open.discard(outgoing)

    async def follow(self) -> None:
        """End those that wait too long, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """End those that wait too long now."""
        latest = time.monotonic() - (PRESSED_SECONDS if self._pressed() else SEND_SECONDS)
        for outgoing in self._open:
            if 0 < outgoing.since < latest:
                outgoing.since = 0.0
                outgoing.ended.reschedule(0)
