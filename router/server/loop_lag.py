"""How late the event loop is: what one blocking call would cost every stream."""

from __future__ import annotations

import asyncio

INTERVAL = 0.05


class LoopLag:
    """The worst lateness, in seconds, since it was last taken."""

    def __init__(self) -> None:
        self._worst = 0.0

    def take(self) -> float:
        """The worst so far; starts anew."""
        worst, self._worst = self._worst, 0.0
        return worst

    async def measure(self) -> None:
        """Sleep and see how much later than asked the loop came back."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self._worst = max(self._worst, loop.time() - due)
