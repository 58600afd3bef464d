"""Background work of a server, which ends with it, and how the server is asked to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from router.reread import problem_of

log = logging.getLogger(__name__)
AGAIN_SECONDS = 1.0  # from an exception to the next attempt
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # to end
SHOWN_SECONDS = 60.0  # after the last exception, until `flaws` leaves it out


class Following:
    """Tasks of a server, on its event loop. What is followed begins again after an exception."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failed: dict[str, tuple[float, str]] = {}  # by name: when it failed last, and why
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def flaws(self) -> list[str]:
        """What failed in the last minute."""
        latest = self._now() - SHOWN_SECONDS
        return [
            f"{name} failed and began again: {problem}"
            for name, (when, problem) in self._failed.items()
            if when > latest
        ]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; its exception is raised by `until`."""
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def follow(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` for as long as the server; no exception of it ends the server or goes unseen."""
        self.spawn(self.keep(name, work))

    async def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until it returns or is cancelled. One second after an exception it begins again.

        The same problem several times in a row is logged once, with its traceback.
        """
        before = ""
        while True:
            try:
                await work()
                return
            except Exception as error:
                problem = problem_of(error)
                if problem != before:
                    log.error("%s failed; it begins again", name, exc_info=error)
                before = problem
                self._failed[name] = self._now(), problem
            await asyncio.sleep(AGAIN_SECONDS)

    async def until(self, asked: asyncio.Event) -> None:
        """Wait for the event. Raises what a task raises before."""
        waiting = asyncio.ensure_future(asked.wait())
        try:
            while not waiting.done():
                for task in self._tasks:
                    if task.done():
                        task.result()
                running = [task for task in self._tasks if not task.done()]
                await asyncio.wait((waiting, *running), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def close(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Ending:
    """Whether the end was asked for, by a signal or a call: once to drain, again to end `at_once`."""

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
