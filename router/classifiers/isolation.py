"""How faults of plugins are named: type and place, never the text, which may hold a user's words."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

# Foreign code runs in daemon threads: one that never returns must not keep the process alive.


T = TypeVar("T")


class StillRunning(Exception):
    """The call did not end in time; its thread goes on."""


class _Outcome:
    """What a call came to."""

    def __init__(self) -> None:
        self.value: object = None
        self.error: BaseException | None = None

    def fill(self, call: Callable[[], object]) -> None:
        """Run `call`; SystemExit and its like are kept as well."""
        try:
            self.value = call()
        except BaseException as error:
            self.error = error


def call_in_thread(call: Callable[[], T], timeout: float, name: str) -> T:
    """The result of `call`, run in a thread of its own.

    Raises whatever `call` raised, and StillRunning after `timeout` seconds.
    """
    outcome = _Outcome()
    thread = threading.Thread(target=outcome.fill, args=(call,), name=name, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise StillRunning(f"did not return within {timeout:g} s")
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]


async def await_in_thread(call: Callable[[], T], name: str) -> T:
    """The same from the event loop, without a limit; cancelling leaves the thread to end by itself."""
    loop = asyncio.get_running_loop()
    outcome = _Outcome()
    finished = asyncio.Event()

    def run() -> None:
        outcome.fill(call)
        post(loop, finished.set)

    threading.Thread(target=run, name=name, daemon=True).start()
    await finished.wait()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]


def post(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> bool:
    """Run `callback` on the loop; False if the loop is closed already."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


# A circuit breaker: a classifier that keeps failing is left alone for a while.


FAILURES = 5
WINDOW_SECONDS = 60.0
OPEN_SECONDS = 30.0


class BreakerState(StrEnum):
    """Closed lets calls through, open none, half-open exactly one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after `failures` failures within `window` s, tries one call after `rest` s. Times in seconds."""

    def __init__(
        self, failures: int = FAILURES, window: float = WINDOW_SECONDS, rest: float = OPEN_SECONDS
    ) -> None:
        self.state = BreakerState.CLOSED
        self._window, self._rest = window, rest
        self._failures: deque[float] = deque(maxlen=failures)
        self._opened = 0.0

    def allow(self, now: float) -> bool:
        """Whether a call may start; the one allowed after the rest must be reported back."""
        if self.state is BreakerState.OPEN and now - self._opened >= self._rest:
            self.state = BreakerState.HALF_OPEN
            return True
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """A call came back in time with a valid answer."""
        if self.state is BreakerState.HALF_OPEN:
            self._failures.clear()
            self.state = BreakerState.CLOSED

    def failed(self, now: float) -> None:
        """A call raised, was late or lied."""
        self._failures.append(now)
        full = len(self._failures) == self._failures.maxlen and now - self._failures[0] <= self._window
        if self.state is BreakerState.HALF_OPEN or full:
            self.state, self._opened = BreakerState.OPEN, now

    def abandoned(self) -> None:
        """The trial call was never made or judged: the next one may try."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN


def place(error: BaseException) -> str:
    """For example `KeyError at shout.py:12`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
