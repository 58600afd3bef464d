"""Work that must not hold up the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


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
