"""Isolation of foreign code: threads of its own, a breaker, and faults named without their text."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

FAILURES = 5  # within WINDOW_SECONDS open a breaker for OPEN_SECONDS
WINDOW_SECONDS = 60.0
OPEN_SECONDS = 30.0
T = TypeVar("T")


class BreakerState(StrEnum):
    """Closed lets calls through, open none, half-open exactly one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after 5 failures within a minute, and tries one call after it rested for 30 seconds.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._opened = 0.0

    def allow(self, now: float) -> bool:
        """Whether a call may start; the one allowed after the rest must be reported back."""
        if self.state is BreakerState.OPEN and now - self._opened >= OPEN_SECONDS:
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
        full = len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECONDS
        if self.state is BreakerState.HALF_OPEN or full:
            self.state, self._opened = BreakerState.OPEN, now

    def abandoned(self) -> None:
        """The trial call was never made or judged: the next one may try."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN


class StillRunning(Exception):
    """The call did not end in time; its thread goes on."""


def call_in_thread(call: Callable[[], T], timeout: float, name: str) -> T:
    """The result of `call`, run in a daemon thread: one that never returns keeps no process alive.

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
        call_on_loop(loop, finished.set)

    threading.Thread(target=run, name=name, daemon=True).start()
    await finished.wait()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]


class _Outcome:
    """The result of a call."""

    def __init__(self) -> None:
        self.value: object = None
        self.error: BaseException | None = None

    def fill(self, call: Callable[[], object]) -> None:
        """Run `call`; SystemExit and its like are kept as well."""
        try:
            self.value = call()
        except BaseException as error:
            self.error = error


def call_on_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> bool:
    """Have the loop run `callback`; False if it is closed already."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


def fault_of(error: BaseException) -> str:
    """Type and place, for example `KeyError at shout.py:12`. Never the text: it may hold a user's words."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
