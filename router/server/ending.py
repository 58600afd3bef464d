"""How a server is asked to end: by signals or by a call, once to drain and again to stop at once."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Whether the end was asked for. `at_once`: it was asked for twice."""

    def __init__(self) -> None:
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()

    def ask(self) -> None:
        """Begin to end; asked again, end at once."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()

    async def pause(self, seconds: float) -> None:
        """So long, but no longer than until the end is to be at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.at_once.wait()


@contextmanager
def signals(stop: Callable[[], None], read_again: Callable[[], None]) -> Iterator[None]:
    """Inside the block, SIGTERM and SIGINT call `stop`, and SIGHUP calls `read_again`; on the event loop."""
    loop = asyncio.get_running_loop()

    def hung_up() -> None:
        """The terminal that the server was started from was closed; else files have changed."""
        on_terminal = sys.stdin is not None and sys.stdin.isatty()
        (stop if on_terminal else read_again)()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it was started by nohup
        loop.add_signal_handler(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        for number in (*SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)
