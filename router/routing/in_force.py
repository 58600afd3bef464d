"""The rule in force: it follows classifiers, adapters and the calibration file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from router.classifiers.contract import Registration
from router.classifiers.isolation import fault_of
from router.reread import Reread
from router.routing.calibration import Calibration
from router.routing.policy import Kinds, Rule
from router.types import AdapterProfile

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
CalibrationFile = Reread[Calibration | None]
CALIBRATED = "calibrated"
NEWCOMER = "the calibration has no requests for this adapter"


class RuleInForce:
    """Keeps the rule of `now` in step."""

    def __init__(self, rule: Rule, calibration: Calibration | None = None) -> None:
        self._uncalibrated = rule.threshold
        self.now = rule
        self.calibration_is(calibration)

    def classifiers_are(self, registrations: Sequence[Registration]) -> None:
        """These are asked now."""
        required = frozenset(r.name for r in registrations if r.required)
        voices = frozenset(r.name for r in registrations if r.classifier.foreign)
        self.now = replace(self.now, required=required, voices=voices)

    def adapters_are(self, profiles: Sequence[AdapterProfile]) -> None:
        """These are routed to now."""
        self.now = replace(self.now, kinds=Kinds(profiles))

    def calibration_is(self, calibration: Calibration | None) -> None:
        """This one is in force now; None: none is."""
        self.calibration: Calibration | None = calibration
        threshold = self._uncalibrated if calibration is None else calibration.threshold
        self.now = replace(self.now, threshold=threshold)

    def status(self, adapter: str = "") -> str:
        """Whether the calibration covers a decision for that adapter; empty without one."""
        if self.calibration is None:
            return ""
        return CALIBRATED if not adapter or adapter in self.calibration.adapters else NEWCOMER


def fingerprint(registration: Registration) -> str:
    """Of a classifier; one that cannot say it has a fingerprint that no other has."""
    try:
        return str(registration.classifier.fingerprint())
    except Exception as error:
        log.warning("classifier %s has no fingerprint: %s", registration.name, fault_of(error))
        return f"{registration.name}/none"


class CalibrationFollower:
    """Looks at the file every LOOK_SECONDS and puts what it holds in force. A file that cannot be used leaves
    the calibration before in force."""

    def __init__(self, file: CalibrationFile, rule: RuleInForce) -> None:
        self._file, self._rule = file, rule
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
        problem = self._file.problem
        return [f"the calibration file cannot be used, the one before holds: {problem}"] if problem else []

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await asyncio.to_thread(self._file.value)
                if found != self._rule.calibration:
                    self._rule.calibration_is(found)
            except Exception:
                log.exception("a calibration could not be taken; the next look tries again")
