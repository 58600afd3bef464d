"""Foreign code runs in daemon threads: one that never returns must not keep the process alive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

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
