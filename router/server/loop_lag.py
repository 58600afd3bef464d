"""How late the event loop is: what one blocking call would cost every stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

INTERVAL, WINDOW = 0.05, 100


async def measure_lag(report: Callable[[float], None]) -> None:
    """Report the worst lateness, in seconds, of the last 100 wake-ups, twenty times a second."""
    loop = asyncio.get_running_loop()
    recent: deque[float] = deque(maxlen=WINDOW)
    while True:
        due = loop.time() + INTERVAL
        await asyncio.sleep(INTERVAL)
        recent.append(max(loop.time() - due, 0.0))
        report(max(recent))
