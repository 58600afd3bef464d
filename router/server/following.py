"""Background work that lasts as long as the server: after an exception it begins again, and that is seen."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from router.reread import problem_of

log = logging.getLogger(__name__)
AGAIN_SECONDS = 1.0  # from an exception to the next attempt
SHOWN_SECONDS = 60.0  # after the last exception, until `flaws` leaves it out


class Following:
    """Keeps work running. No exception of it ends the server or goes unseen."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failed: dict[str, tuple[float, str]] = {}  # by name: when it failed last, and why

    @property
    def flaws(self) -> list[str]:
        """What failed in the last minute."""
        latest = self._now() - SHOWN_SECONDS
        return [
            f"{name} failed and began again: {problem}"
            for name, (when, problem) in self._failed.items()
            if when > latest
        ]

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
