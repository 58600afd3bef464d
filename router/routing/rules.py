"""Which rule weighs the votes now: a calibration that fits what is there, one that does not, or none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from router.calibration.binding import Binding, bind, differences
from router.calibration.model import Calibration
from router.plugins.registration import Registration
from router.routing.axes import axes_of
from router.routing.calibrated import STRICT, Calibrated
from router.routing.faults import place
from router.routing.policy import Policy
from router.types import AdapterProfile

log = logging.getLogger(__name__)
FITTED = "fitted"


class Rules:
    """Keeps the rule in step with classifiers and adapters, and says when a calibration stops to fit.

    `strict` is the confidence that is needed while it does not; `base` names the base that is served.
    """

    def __init__(
        self,
        policy: Policy,
        calibration: Calibration | None = None,
        *,
        base: str = "",
        strict: float = STRICT,
    ) -> None:
        self._policy, self._calibration = policy, calibration
        self._base, self._strict = base, strict
        self._registrations: Sequence[Registration] | None = None
        self._profiles: Sequence[AdapterProfile] | None = None
        self.rule: Policy | Calibrated = policy
        self.status = ""  # of the calibration: empty without one, `fitted`, or what does not fit

    def classifiers(self, registrations: Sequence[Registration]) -> None:
        """These are asked now."""
        self._registrations = registrations
        required = frozenset(r.name for r in registrations if r.required)
        self._policy = replace(self._policy, required=required)
        self.settle()

    def adapters(self, profiles: Sequence[AdapterProfile]) -> None:
        """These are routed to now."""
        self._profiles = profiles
        self._policy = replace(self._policy, kinds=axes_of(sorted(profiles, key=lambda p: p.name)))
        self.settle()

    def settle(self) -> None:
        """Compare again, once both are known; a change is logged once."""
        if self._calibration is None or self._registrations is None or self._profiles is None:
            self.rule = self._policy
            return
        asked = [r for r in self._registrations if r.name not in self._calibration.left_out]
        present = bind(self._profiles, {r.name: fingerprint(r) for r in asked}, self._base)
        found = self._differences(self._calibration, present)
        self.rule = Calibrated(self._calibration, self._policy, found, self._strict)
        status = f"stale: {'; '.join(found)}" if found else FITTED
        if status != self.status:
            self.status = status
            self._tell(found)

    def _differences(self, of: Calibration, present: Binding) -> tuple[str, ...]:
        found = differences(of.binding, present)
        if self._policy.axes != of.axes:
            found = (*found, "task_first or domain_first is set otherwise")
        return found

    def _tell(self, found: Sequence[str]) -> None:
        if found:
            log.warning(
                "the calibration is for another set (%s): %.2f confidence is needed until `lora-router route "
                "calibrate` was run again",
                "; ".join(found),
                self._strict,
            )
        else:
            log.info("the calibration fits the adapters and classifiers that are here")


def fingerprint(registration: Registration) -> str:
    """Of a classifier; one that cannot say it has a fingerprint that no calibration has."""
    try:
        return str(registration.classifier.fingerprint())
    except Exception as error:
        log.warning("classifier %s has no fingerprint: %s", registration.name, place(error))
        return f"{registration.name}/none"
