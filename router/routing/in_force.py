"""The rule in force: it follows classifiers, adapters and the calibration file, and says when a calibration
stops to fit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from router.calibration.model import Calibration, axes_of, binding_of, differences, newcomers
from router.classifiers.contract import UNABLE, Classifier, Registration
from router.classifiers.isolation import fault_of
from router.reread import Reread
from router.routing.policy import FEW, FITTED, STRICT, CalibratedRule, Kinds, PlainRule
from router.types import AdapterProfile

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
CalibrationFile = Reread[Calibration | None]
Take = Callable[[Calibration | None], Awaitable[None]]


class RuleInForce:
    """Keeps the rule of `now` in step with classifiers and adapters; says when a calibration stops to fit.

    `strict` is the confidence that is needed while it does not; `base` names the base that is served. Without
    `multilingual` classifiers for other languages are not asked.
    """

    def __init__(
        self,
        policy: PlainRule,
        calibration: Calibration | None = None,
        *,
        base: str = "",
        strict: float = STRICT,
        multilingual: bool = True,
    ) -> None:
        self._policy, self._calibration = policy, calibration
        self._base, self._strict, self._multilingual = base, strict, multilingual
        self._registrations: Sequence[Registration] | None = None
        self._profiles: Sequence[AdapterProfile] | None = None
        self.now: PlainRule | CalibratedRule = policy
        self.status = ""  # of the calibration: empty without one, `fitted`, or what does not fit

    def classifiers_are(self, registrations: Sequence[Registration]) -> None:
        """These are asked now."""
        self._registrations = registrations
        required = frozenset(r.name for r in registrations if r.required)
        self._policy = replace(self._policy, required=required)
        self._tell_learners()
        self.compare()

    def adapters_are(self, profiles: Sequence[AdapterProfile]) -> None:
        """These are routed to now."""
        self._profiles = profiles
        self._policy = replace(self._policy, kinds=Kinds(profiles))
        self._tell_learners()
        self.compare()

    def _tell_learners(self) -> None:
        """Which classifiers learn from examples what the policy weighs. Up to FEW adapters those that scale
        are idle: they learn them too, and err more often. Beyond, the others learn none."""
        registrations, few = self._registrations or (), len(self._profiles or ()) <= FEW
        voices = frozenset(r.name for r in registrations if r.classifier.foreign)
        comparing = frozenset(r.name for r in registrations if r.classifier.compares)
        learning = [
            r
            for r in registrations
            if type(r.classifier).fit is not Classifier.fit and r.name not in voices | comparing
        ]
        scaling = frozenset(r.name for r in learning if r.classifier.scales)
        others = frozenset(r.name for r in learning) - scaling
        learners, idle = (others, scaling) if few and others else (scaling, frozenset[str]())
        idle |= comparing if self._multilingual else comparing | voices
        self._policy = replace(self._policy, learners=learners, idle=idle, voices=voices)

    def taught(self, profiles: Sequence[AdapterProfile]) -> tuple[AdapterProfile, ...]:
        """What classifiers learn of these adapters, by the calibration in force."""
        return taught_by(self._calibration, profiles)

    def calibration_is(self, calibration: Calibration | None) -> None:
        """This one is in force now; None: none is."""
        self._calibration = calibration
        self.compare()

    def unfit(self, other: Calibration | None) -> tuple[str, ...]:
        """Why `other` would fit worse than the calibration in force: what it was made for and is not here.
        Empty where it may replace the one in force."""
        if other is None or self._registrations is None or self._profiles is None:
            return ()
        of = self._calibration
        if of is not None and self._differences(of):
            return ()
        return self._differences(other)

    def compare(self) -> None:
        """Compare again, once both are known; a change is logged once."""
        of = self._calibration
        if of is None:
            self.now, self.status = self._policy, ""
            return
        if self._registrations is None or self._profiles is None:
            self.now = self._policy
            return
        panel = self._weighed(of)
        scaling = [r for r in self._registrations if r.classifier.scales and r not in panel]
        core = of.known(self._profiles)
        found = self._differences(of)
        self.now = CalibratedRule(
            of,
            self._policy,
            found,
            self._strict,
            axes_of(core),
            newcomers(of.binding, self._profiles),
            frozenset(r.name for r in scaling),
            frozenset(r.name for r in scaling if r.classifier.compares),
        )
        status = f"stale: {'; '.join(found)}" if found else FITTED
        if status != self.status:
            self.status = status
            self._tell(found)

    def _weighed(self, of: Calibration) -> list[Registration]:
        """The classifiers here that a calibration weighs or could have weighed."""
        there = [r for r in self._registrations or () if not r.classifier.foreign]
        return [r for r in there if not r.classifier.scales or r.name in of.scalers]

    def _differences(self, of: Calibration) -> tuple[str, ...]:
        """What is not as the calibration was made for."""
        fingerprints = {r.name: fingerprint(r) for r in self._weighed(of) if r.name not in of.left_out}
        found = differences(of.binding, binding_of(of.known(self._profiles or ()), fingerprints, self._base))
        if self._policy.axes != of.axes:
            found = (*found, "task_first or domain_first is set otherwise")
        return (*found, *self._unable(of))

    def _unable(self, of: Calibration) -> Iterator[str]:
        """Classifiers that it weighs and that cannot work with this base's engine."""
        for registration in self._registrations or ():
            health = registration.health
            if health.state == UNABLE and registration.name in of.binding.classifiers:
                yield f"classifier {registration.name} cannot be asked: {health.fit_error}"

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


def taught_by(
    calibration: Calibration | None, profiles: Sequence[AdapterProfile]
) -> tuple[AdapterProfile, ...]:
    """What classifiers learn of these adapters, save those that scale, which learn all: those that the
    calibration knows, as it knew them; without one all, if they are few, else none."""
    if calibration is not None:
        return calibration.taught(profiles)
    return tuple(profiles) if len(profiles) <= FEW else ()


def fingerprint(registration: Registration) -> str:
    """Of a classifier; one that cannot say it has a fingerprint that no calibration has."""
    try:
        return str(registration.classifier.fingerprint())
    except Exception as error:
        log.warning("classifier %s has no fingerprint: %s", registration.name, fault_of(error))
        return f"{registration.name}/none"


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
