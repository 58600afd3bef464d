"""A calibration file that is read again while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from router.calibration.model import Calibration
from router.reread import Reread
from router.routing.policy import RuleInForce

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
CalibrationFile = Reread[Calibration | None]
Take = Callable[[Calibration | None], Awaitable[None]]


class CalibrationFollower:
    """Looks at the file every LOOK_SECONDS and gives `take` what it holds, once it fits.

    A file that cannot be used leaves the calibration before in force, and so does one that was made for other
    classifiers or another base while the present one fits. It is taken as soon as it fits.
    """

    def __init__(self, file: CalibrationFile, rule: RuleInForce, take: Take) -> None:
        self._file, self._rule, self._take = file, rule, take
        self._taken = file.value()
        self._refused: tuple[Calibration | None, str] = None, ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow from now on; on the event loop."""
        self._task = asyncio.create_task(self._follow(), name="calibration watch")

    def close(self) -> None:
        """Follow no more."""
        if self._task is not None:
            self._task.cancel()

    @property
    def flaws(self) -> list[str]:
        """Why the file on disk is not in force."""
        problem = self._file.problem or self._refused[1]
        return [f"the calibration file cannot be used, the one before holds: {problem}"] if problem else []

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("a calibration could not be taken; the next look tries again")

    async def look(self) -> None:
        """Look at the file now."""
        found = await asyncio.to_thread(self._file.value)
        if found == self._taken:
            self._refused = None, ""
            return
        if unfit := self._rule.unfit(found):
            self._refuse(found, f"it was made for another set: {'; '.join(unfit)}")
            return
        await self._take(found)
        self._taken, self._refused = found, (None, "")

    def _refuse(self, found: Calibration | None, why: str) -> None:
        if self._refused != (found, why):
            log.error("the new calibration is not taken; the one before stays in force: %s", why)
        self._refused = found, why
